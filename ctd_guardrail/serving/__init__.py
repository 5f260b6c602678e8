"""A base model in a serving engine: the exported checkpoint, and the client that reads it. Internal."""
