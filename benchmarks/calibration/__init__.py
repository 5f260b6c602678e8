"""Cost of a calibration run, of certificates and of monitors."""
