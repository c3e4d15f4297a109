"""Evaluators of regions."""
