"""Reads a run folder's files, never live objects."""
