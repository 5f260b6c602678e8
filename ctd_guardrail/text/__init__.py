"""Text as the guard reads it: conversations, message content, normal form, lookalike characters, refusals. Internal."""
