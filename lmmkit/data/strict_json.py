"""Rows of a JSON list or a JSONL file, each with its line, and nothing accepted that is not JSON.

Python's parser takes duplicate keys, NaN, numbers without end and half surrogates; here they are
problems. A bad row does not hide the rows behind it, as far as those can still be made out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lmmkit.errors import Problem, UserError

MAX_DIGITS = 20  # enough for 64 bits; Python refuses to read more than some thousands at all
_GAP = re.compile(r"[ \t\n\r]*")
_MARKS = (
    (b"\x1f\x8b", "a gzip archive", "Unpack it."),
    (b"PK\x03\x04", "a zip archive", "Unpack it."),
    (b"\xef\xbb\xbf", "a byte order mark", "Save it as UTF-8 without one."),
    (b"\xff\xfe", "UTF-16", "Save it as UTF-8."),
    (b"\xfe\xff", "UTF-16", "Save it as UTF-8."),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the file: its index from 0, its line from 1, its value, and what is wrong in it.

    `faults` are (what was found, what was wanted); a row that has any has no usable value.
    """

    index: int
    line: int
    value: object = None
    faults: tuple[tuple[str, str], ...] = ()


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of `path`: lines if its name ends in .jsonl, else the items of one JSON list.

    Raises `UserError` before the first row if the file is missing or no UTF-8 text. What is no
    list, or ends too early, shows as a last row with faults.
    """
    text = _text(path)
    parser = _Parser()
    return _lines(text, parser) if path.suffix == ".jsonl" else _items(text, parser)


class _Parser:
    """Python's scanner with hooks that note what it would let pass."""

    def __init__(self) -> None:
        self.faults: list[tuple[str, str]] = []
        self.decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_int=self._int,
            parse_float=self._float,
        )

    def at(self, text: str, start: int) -> tuple[object, int, tuple[tuple[str, str], ...]]:
        """(value, end, faults) of the JSON value at `start`; `JSONDecodeError` if there is none."""
        self.faults = []
        try:
            value, end = self.decoder.raw_decode(text, start)
        except RecursionError:
            raise json.JSONDecodeError("nested too deeply", text, start) from None
        return value, end, tuple(self.faults)

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            again = next(key for i, key in enumerate(keys) if key in keys[:i])
            self.faults.append((f"key {again!a} twice", "each key once"))
        return found

    def _constant(self, name: str) -> float:
        self.faults.append((name, "a number that JSON has"))
        return 0.0

    def _int(self, digits: str) -> int:
        if len(digits) <= MAX_DIGITS:
            return int(digits)
        self.faults.append((f"an integer of {len(digits)} digits", "at most 64 bits"))
        return 0

    def _float(self, digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            self.faults.append((f"{digits[:20]}, which is beyond a float", "a finite number"))
        return value


def _items(text: str, parser: _Parser) -> Iterator[Row]:
    at = _skip(text, 0)
    line, counted, index = 1, 0, 0
    if text[at : at + 1] != "[":
        line += text.count("\n", 0, at)
        found = repr(text[at : at + 20]) if text[at:] else "nothing"
        yield Row(index=0, line=line, faults=((found, "a JSON list; JSONL is named .jsonl"),))
        return
    at = _skip(text, at + 1)
    closed = text[at : at + 1] == "]"
    if closed:
        at = _skip(text, at + 1)
    while not closed:
        line += text.count("\n", counted, at)
        counted = at
        try:
            value, at, faults = parser.at(text, at)
        except json.JSONDecodeError as error:
            yield Row(index=index, line=error.lineno, faults=(_broken(error),))
            return
        yield Row(index=index, line=line, value=value, faults=faults)
        index += 1
        at = _skip(text, at)
        closed = text[at : at + 1] == "]"
        if not closed and text[at : at + 1] != ",":
            line += text.count("\n", counted, at)
            found = repr(text[at : at + 20]) if text[at:] else "the end of the file"
            yield Row(index=index, line=line, faults=((found, "`,` or `]` after a row"),))
            return
        at = _skip(text, at + 1)
    if at != len(text):
        line += text.count("\n", counted, at)
        found = repr(text[at : at + 20])
        yield Row(index=index, line=line, faults=((found, "nothing after the list"),))


def _lines(text: str, parser: _Parser) -> Iterator[Row]:
    index = 0
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip(" \t\r"):
            yield _line(line, parser, index, number)
            index += 1


def _line(line: str, parser: _Parser, index: int, number: int) -> Row:
    try:
        value, end, faults = parser.at(line, _skip(line, 0))
    except json.JSONDecodeError as error:
        return Row(index=index, line=number, faults=(_broken(error),))
    if (end := _skip(line, end)) != len(line):
        faults += ((repr(line[end : end + 20]), "one value a line"),)
    return Row(index=index, line=number, value=value, faults=faults)


def _broken(error: json.JSONDecodeError) -> tuple[str, str]:
    return f"broken JSON at column {error.colno}: {error.msg}", "JSON"


def _skip(text: str, at: int) -> int:
    gap = _GAP.match(text, at)
    return gap.end() if gap else at


def _text(path: Path) -> str:
    def refuse(where: str, got: str, want: str, mend: str) -> UserError:
        return UserError(Problem("records/file", where, got, want, mend))

    try:
        if not path.is_file():
            got = "no regular file" if path.exists() else "no such file"
            raise refuse(str(path), got, "a JSON or JSONL file", "Mend `records`.")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise refuse(str(path), got, "a file to read", "Mend `records`.") from error
    for mark, got, mend in _MARKS:
        if data.startswith(mark):
            raise refuse(f"{path}:1", got, "JSON in UTF-8", mend)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        got = f"byte 0x{data[error.start]:02x} at offset {error.start}, which is no UTF-8"
        raise refuse(f"{path}:{line}", got, "JSON in UTF-8", "Save it as UTF-8.") from error
