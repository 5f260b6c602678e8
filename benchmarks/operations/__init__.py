"""Runs of the whole guard as an operator meets it: dashboard, red-team scanner, observability."""
