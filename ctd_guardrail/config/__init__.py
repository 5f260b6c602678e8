"""The rail's section of a configuration: pydantic models and their checks."""
