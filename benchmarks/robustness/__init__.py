"""Recall on disguised text, with and without the normaliser."""
