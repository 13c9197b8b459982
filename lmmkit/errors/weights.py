"""Codes of problems with model folders, their import and their export."""
