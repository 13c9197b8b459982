"""Finds the files that a pattern names."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from lmmkit.errors import UserError
from lmmkit.errors.data import RECORDS_FILE


def is_pattern(text: str) -> bool:
    """Returns whether a text has one of the marks of patterns."""
    return any(mark in text for mark in "*?[")


def folder_and_rest(pattern: Path) -> tuple[Path, str]:
    """Returns the last folder of a pattern that exists, in whose name a mark is a plain character, and the rest."""
    above = next((folder for folder in pattern.parents if os.path.isdir(folder)), Path())
    return above, str(pattern.relative_to(above))


def matching(pattern: Path) -> list[Path]:
    """Returns the files that match a pattern, sorted; `**` matches any folders below.

    Raises `UserError` if one file has two names.
    """
    above, rest = folder_and_rest(pattern)
    found = [above / name for name in sorted(glob.glob(rest, root_dir=above, recursive=True))]
    known: dict[str, Path] = {}
    for path in found:
        first = known.setdefault(os.path.realpath(path), path)
        if first != path:
            got = f"{first} and {path}, which are one file"
            raise UserError(
                RECORDS_FILE.at(str(pattern), got=got, expected="a pattern that names each file once")
            )
    return found
