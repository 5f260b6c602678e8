"""Policies: the folder that calibration writes, and the step from a budget to a threshold. Internal."""
