"""Labelled conversations: reading, splitting, padding."""
