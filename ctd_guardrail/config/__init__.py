"""Settings of a configuration: pydantic models and their checks. Internal."""
