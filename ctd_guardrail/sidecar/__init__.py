"""The rail as an HTTP service: the FMS detector API and plain JSON. Needs the extra ``serve``. Internal."""
