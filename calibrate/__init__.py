"""Offline calibration: from labelled conversations to the policy that the rail reads."""
