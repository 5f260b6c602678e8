"""Experts: the judges of inputs that the probe should not judge alone. Internal."""
