"""Serve: an application and its requests, from startup to shutdown."""
