"""Serve registered models over HTTP with Ray Serve, and a page to try them."""
