"""Codes of problems with recipes."""
