"""Serving: one running batch for everyone who asks, over HTTP, on the terminal, on a web page or by votes."""
