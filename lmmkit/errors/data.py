"""Codes of problems with data sets, images, tokenizers and chat templates."""
