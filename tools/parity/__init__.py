"""Tiny models of the real libraries with the weights of tests/convert/parity_weights.py; one module a format."""
