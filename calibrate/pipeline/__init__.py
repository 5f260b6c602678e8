"""Internal. The pipelines behind the commands: calibration, recalibration, and study of a policy."""
