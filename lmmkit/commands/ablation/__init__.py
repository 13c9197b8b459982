"""lmmkit ablate: the commands that a grid runs, their queue, and what the user gets."""
