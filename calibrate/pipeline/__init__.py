"""The commands that write a policy: a calibration, and a recalibration."""
