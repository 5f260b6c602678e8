"""Statistics of the running rail: monitors of its rate, its scores and its misses. Internal."""
