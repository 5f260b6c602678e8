"""Calibration on the machines of a Ray cluster. Only this room imports ray, and only where it is used."""
