"""Codes of problems with runs, checkpoints, ranks and the files of a run."""
