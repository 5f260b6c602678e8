"""Internal. CALIBRATE.yml: pydantic models and their checks."""
