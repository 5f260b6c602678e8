"""A base model that a serving engine runs: the checkpoint that it serves, and the client that reads it."""
