"""Parses JSON strictly, and reports as problems what Python's parser accepts.

Python accepts duplicate keys, NaN, numbers of unlimited size and lone surrogates. `Window` reads a
text piece by piece, so a file of any size needs only a few megabytes of memory.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

from lmmkit.errors import UserError
from lmmkit.errors.data import RECORDS_FILE

MAX_DIGITS = 20  # enough for 64 bits; Python itself raises above some thousands
MAX_RECORD = 32 * 2**20  # characters of one value, three times the longest escaped conversation
_BLOCK = 2**20
TOO_DEEP = "nested too deeply"
_BYTE = re.compile(r"[\udc80-\udcff]")  # no UTF-8, decoded as a surrogate
_GAP = re.compile(r"[ \t\n\r]*")
_MARKS = (
    (b"\x1f\x8b", "a gzip archive", "an unpacked file of JSON"),
    (b"PK\x03\x04", "a zip archive", "an unpacked file of JSON"),
    (b"\xef\xbb\xbf", "a byte order mark", "JSON in UTF-8 without a byte order mark"),
    (b"\xff\xfe", "UTF-16", "JSON in UTF-8"),
    (b"\xfe\xff", "UTF-16", "JSON in UTF-8"),
)

Faults = tuple[tuple[str, str], ...]  # (got, expected)


class Parser:
    """Parses with Python's JSON decoder and hooks that record the faults it would accept."""

    def __init__(self) -> None:
        self.faults: list[tuple[str, str]] = []
        self.decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_int=self._int,
            parse_float=self._float,
        )

    def at(self, text: str, start: int) -> tuple[object, int, Faults]:
        """Returns (value, end, faults) of the value at `start`. Raises `JSONDecodeError` if there is none."""
        self.faults = []
        try:
            value, end = self.decoder.raw_decode(text, start)
        except RecursionError:
            raise json.JSONDecodeError(TOO_DEEP, text, start) from None
        return value, end, tuple(self.faults)

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for i, key in enumerate(keys) if key in keys[:i])
            self.faults.append((f"key {repeated!a} twice", "each key once"))
        return found

    def _constant(self, name: str) -> float:
        self.faults.append((name, "a JSON number"))
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


def skip(text: str, at: int) -> int:
    """Returns the end of the blanks that start at `at`."""
    gap = _GAP.match(text, at)
    return gap.end() if gap else at


class Window:
    """Reads the characters of a UTF-8 file, forward only.

    `text[at:]` is what has been read but not passed. `line` and `offset` (bytes) are those of the
    character at `at`. `column` counts the characters before `text` in its line. `size` counts the bytes
    read so far. A byte that is no UTF-8 becomes a surrogate, as Python's file names have it; `undecoded` finds it.

    Raises `UserError` if the file is missing, not a regular file, or in UTF-16.
    """

    def __init__(self, path: Path, progress: Callable[[int], None] = lambda size: None) -> None:
        self.path, self.progress = path, progress
        self.text, self.at = "", 0
        self.line, self.offset, self.column = 1, 0, 0
        self.size = 0
        self.done = False
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.file = open_regular(path)
        self.more()

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *caught: object) -> None:
        self.file.close()

    def more(self) -> bool:
        """Reads at least as much as `text[at:]` contains. Returns False at the end of the file."""
        if self.done:
            return False
        data = self._read(max(_BLOCK, len(self.text) - self.at))
        if not self.size:
            self._check_mark(data)
        self.done = not data
        state = self._decoder.getstate()
        try:
            text = self._decoder.decode(data, final=self.done)
        except UnicodeDecodeError:
            self._decoder.errors = "surrogateescape"
            self._decoder.setstate(state)
            text = self._decoder.decode(data, final=self.done)
        if not data and not text:
            return False
        passed = self.text[: self.at]
        self.column = len(passed) - passed.rfind("\n") - 1 + (self.column if "\n" not in passed else 0)
        self.text, self.at = self.text[self.at :] + text, 0
        self.size += len(data)
        self.progress(self.size)
        return True

    def _read(self, n: int) -> bytes:
        try:
            return self.file.read(n)
        except OSError as error:
            got = error.strerror or str(error)
            raise _refused(str(self.path), got, "a file that can be read") from error

    def _check_mark(self, data: bytes) -> None:
        for mark, got, expected in _MARKS:
            if data.startswith(mark):
                raise _refused(f"{self.path}:1", got, expected)

    def take(self, end: int) -> int:
        """Moves to `end` of `text`. Returns the number of bytes passed."""
        passed = self.text[self.at : end]
        size = self._bytes(passed)
        self.line += passed.count("\n")
        self.offset += size
        self.at = end
        return size

    def undecoded(self, end: int) -> Faults:
        """Returns a fault for the first byte before `end` of `text` that is no UTF-8."""
        if self._decoder.errors == "strict" or (found := _BYTE.search(self.text, self.at, end)) is None:
            return ()
        offset = self.offset + self._bytes(self.text[self.at : found.start()])
        got = f"byte 0x{ord(found[0]) - 0xDC00:02x} at offset {offset}, which is no UTF-8"
        return ((got, "JSON in UTF-8"),)

    def _bytes(self, text: str) -> int:
        return len(text) if text.isascii() else len(text.encode("utf-8", self._decoder.errors))

    def peek(self) -> str:
        """Moves to the next character that is not blank and returns it; "" at the end of the file."""
        while True:
            self.take(skip(self.text, self.at))
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def next_line(self) -> str | None:
        """Returns the rest of the line without its end; None if it is longer than MAX_RECORD."""
        searched = self.at
        while (end := self.text.find("\n", searched)) < 0:
            if self.is_full:
                return None
            searched = len(self.text) - self.at
            if not self.more():
                end = len(self.text)
                break
        return self.text[self.at : end]

    def pass_line(self) -> None:
        """Moves to the end of the line, of any length."""
        while (end := self.text.find("\n", self.at)) < 0:
            self.take(len(self.text))
            if not self.more():
                return
        self.take(end)

    @property
    def is_full(self) -> bool:
        """Returns whether `value` reads no further to find an end."""
        return len(self.text) - self.at > MAX_RECORD

    def value(self, parser: Parser) -> tuple[object, int, Faults]:
        """Returns (value, its end in `text`, faults) of the value at `at`. Raises as `Parser.at`."""
        while True:
            try:
                value, end, faults = parser.at(self.text, self.at)
            except json.JSONDecodeError as error:
                if error.msg == TOO_DEEP or self.is_full or not self.more():
                    raise
                continue
            if end < len(self.text) or not self.more():  # a number at the end of `text` may continue
                return value, end, faults


def open_regular(path: Path):
    """Opens a file for reading bytes. Raises `UserError` if it is not a regular file."""
    try:
        if not path.is_file():
            got = "no regular file" if path.exists() else "no such file"
            raise _refused(str(path), got, "a JSON file, a JSONL file or a shard")
        return open(path, "rb", buffering=0)
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise _refused(os.fspath(path), got, "a file that can be read") from error


def _refused(where: str, got: str, expected: str) -> UserError:
    return UserError(RECORDS_FILE.at(where, got=got, expected=expected))
