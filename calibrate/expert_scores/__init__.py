"""Internal. Expert scores of calibration rows: worker pool, score log, refused rows."""
