"""Finds the files that a name means: a file of this name, or those that match it as a pattern."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from lmmkit.data.sources.json_stream import open_regular
from lmmkit.errors import Tried, UserError, raise_together
from lmmkit.errors.data import RECORDS_FILE

NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})(?!\d)")


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
        raise _refused(name, "no such file", "a file, or several")
    raise_together([Tried(lambda path=path: open_regular(path).close()) for path in found])
    return found


def matching(pattern: Path) -> list[Path]:
    """Returns the files that match a pattern, sorted; `**` matches any folders below.

    Raises `UserError` for files that repeat the records of others, as `require_distinct` and `require_one_set` do.
    """
    above, rest = folder_and_rest(pattern)
    found = [above / name for name in sorted(glob.glob(rest, root_dir=above, recursive=True))]
    require_distinct(pattern, found)
    require_one_set(pattern, found)
    return found


def require_distinct(where: Path, found: Iterable[Path]) -> None:
    """Raises `UserError` if one of the files that `where` names has two names, or the same name twice."""
    known: dict[str, Path] = {}
    for path in found:
        real = os.path.realpath(path)
        if real in known:
            got = f"{known[real]} and {path}, which are one file"
            raise _refused(where, got, "each file once")
        known[real] = path


def require_one_set(where: Path, found: Iterable[Path]) -> dict[str, tuple[int, list[int]]]:
    """Returns by their beginning how many numbered files there should be, and the numbers of those that are there.

    Raises `UserError` for files that repeat the records of others: those of another number of files, and two of one
    number.
    """
    totals, numbers = dict[str, int](), defaultdict[str, list[int]](list)
    for path in found:
        if not (named := NUMBERED.match(path.stem)):
            continue
        begin, number, total = str(path.parent / named[1]), int(named[2]), int(named[3])
        if totals.setdefault(begin, total) != total:
            got = f"files of {totals[begin]} and of {total} `{named[1]}`"
            raise _refused(where, got, f"those of one set, such as {begin}-*-of-{total:05d}*")
        if number in numbers[begin]:
            got = f"two files with the number {number:05d} of `{named[1]}`, such as {path.name}"
            raise _refused(where, got, "one file of each number")
        numbers[begin].append(number)
    return {begin: (total, numbers[begin]) for begin, total in totals.items()}


def _refused(where: Path, got: str, expected: str) -> UserError:
    return UserError(RECORDS_FILE.at(str(where), got=got, expected=expected))
