"""Codes of problems with what is asked of a command."""
