"""Finds the files that a name means: a file of this name, or those that match it as a pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from lmmkit.data.sources.json_stream import open_regular
from lmmkit.errors import Tried, UserError, raise_together
from lmmkit.errors.data import RECORDS_FILE


def is_pattern(text: str) -> bool:
    """Returns whether a text has one of the marks of patterns."""
    return any(mark in text for mark in "*?[")


def folder_and_rest(pattern: Path) -> tuple[Path, str]:
    """Returns the last folder of a pattern that exists, in whose name a mark is a plain character, and the rest."""
    above = next((folder for folder in pattern.parents if os.path.isdir(folder)), Path())
    return above, str(pattern.relative_to(above))


def files_of(name: Path) -> list[Path]:
    """Returns the files that match a pattern, as `matching` does; any other name, and that of a file, is returned as
    it is."""
    plain = "\0" in str(name) or not is_pattern(str(name)) or os.path.exists(name)
    if plain or not is_pattern(folder_and_rest(name)[1]):
        return [name]
    return matching(name)


def json_files(name: Path) -> list[Path]:
    """Returns the files of a name or a pattern. Raises `UserError` if there are none, or if some cannot be read."""
    found = files_of(name)
    if not found:
        raise UserError(RECORDS_FILE.at(str(name), got="no such file", expected="a file, or several"))
    raise_together([Tried(lambda path=path: open_regular(path).close()) for path in found])
    return found


def matching(pattern: Path) -> list[Path]:
    """Returns the files that match a pattern, sorted; `**` matches any folders below.

    Raises `UserError` if one file has two names.
    """
    above, rest = folder_and_rest(pattern)
    found = [above / name for name in sorted(glob.glob(rest, root_dir=above, recursive=True))]
    require_distinct(pattern, found)
    return found


def require_distinct(where: Path, found: Iterable[Path]) -> None:
    """Raises `UserError` if one of the files that `where` names has two names, or the same name twice."""
    known: dict[str, Path] = {}
    for path in found:
        real = os.path.realpath(path)
        if real in known:
            got = f"{known[real]} and {path}, which are one file"
            raise UserError(RECORDS_FILE.at(str(where), got=got, expected="each file once"))
        known[real] = path
