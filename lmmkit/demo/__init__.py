"""A trained model that comes with lmmkit, an image to ask it about, and a run folder around it."""
