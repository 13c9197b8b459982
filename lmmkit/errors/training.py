"""Codes of problems with runs, checkpoints, ranks and the files of a run."""

from lmmkit.errors import Code

# run
RUN_CANNOT_WRITE = Code(
    "run/cannot-write",
    cause="The file system refuses to create or change a file of the run folder.",
    expected="a folder that can be written to, on a file system with locks",
    hint="Free disk space or change the folder's permissions, or name another folder (`--out DIR`).",
)
RUN_UNREADABLE = Code(
    "run/unreadable",
    cause="A JSON file of the run is missing, damaged, or lacks a value.",
    expected="{content}",
    hint="{fix}",
)
