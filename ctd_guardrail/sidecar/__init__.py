"""The rail as an HTTP service of its own: the FMS detector API and plain JSON. Needs the extra ``serve``."""
