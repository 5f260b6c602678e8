"""Expert scores of calibration rows: asking, logging, refused rows."""
