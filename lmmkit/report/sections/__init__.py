"""The sections of a report: each file computes what one template of `templates/` shows."""
