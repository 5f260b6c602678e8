"""Assembly of a guard from a configuration folder. Internal."""
