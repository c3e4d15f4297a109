"""Weights of other formats, by declarative key tables."""
