"""Codes of problems with plugins, plans and evaluation settings."""
