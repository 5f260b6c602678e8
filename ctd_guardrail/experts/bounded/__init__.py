"""Limits around every expert: deadline, concurrency, breaker, spend. Internal."""
