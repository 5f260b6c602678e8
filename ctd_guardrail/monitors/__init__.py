"""Guards of the running rail: monitors of its rate, its scores and its misses, and caps on its spend."""
