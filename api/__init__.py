"""The HTTP API: accept, validate, publish, answer."""
