"""Losses over regions."""
