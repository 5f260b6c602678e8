"""Measurements of this package, one room for each subject; README.md lists their commands."""
