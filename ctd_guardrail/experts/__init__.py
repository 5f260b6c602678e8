"""Experts: whatever judges the inputs that the probe should not judge alone."""
