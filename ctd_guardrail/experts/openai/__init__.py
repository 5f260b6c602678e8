"""An expert behind an OpenAI-compatible HTTP API. Internal."""
