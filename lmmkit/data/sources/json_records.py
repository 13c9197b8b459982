"""Reads the records of a JSON list or a JSONL file, each with its line and its bytes.

After a bad record the following records are still read, as far as their start can be found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from lmmkit.data.sources.json_stream import MAX_RECORD, Faults, Parser, Window, skip
from lmmkit.errors import Problem, UserError
from lmmkit.errors.data import RECORDS_FILE


class RawRecord(NamedTuple):
    """Holds a record of a file: its index from 0, its line from 1, its value and its faults.

    `faults` are pairs (got, expected); a record with faults has no usable value. `ends`: nothing after it can be read.
    Its text is the `length` bytes from `offset` on. `no_surrogates`: the text contains no escape of a surrogate.

    Of a record that was written in another form: `problems`, each with the part of the record; `notes`: what
    was not read; `names`: the names that the parts of LLaVA's form have in it; `inside`: names of images that it
    contains.
    """

    index: int
    line: int
    value: object = None
    faults: Faults = ()
    offset: int = 0
    length: int = 0
    no_surrogates: bool = False
    problems: tuple[tuple[str, Problem], ...] = ()
    notes: tuple[str, ...] = ()
    names: Mapping[str, str] = MappingProxyType({})
    inside: frozenset[str] = frozenset()
    ends: bool = False


def read_records(window: Window) -> Iterator[RawRecord]:
    """Returns the records of a file: its lines if its name ends in .jsonl, else the items of a JSON list.

    If the file is not a list, or ends too early, the last record has faults. Raises `UserError` for a list
    in a file of lines, and for an object in a file that should be a list.
    """
    lines, first = window.path.suffix == ".jsonl", window.peek()
    if (first, lines) in (("[", True), ("{", False)):
        got, expected = ("a JSON list", "one record a line; name a JSON list .json") if lines else (
            "a JSON object", "a JSON list; name a file with one record a line .jsonl; the kinds `coco` and `vqa` read "
            "official files",
        )  # fmt: skip
        raise UserError(RECORDS_FILE.at(str(window.path), got=got, expected=expected))
    return _lines(window) if lines else _items(window)


def parse_record(data: bytes, index: int, line: int) -> RawRecord:
    """Returns the record that the bytes `data` contain."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        got = f"byte 0x{data[error.start]:02x}, which is no UTF-8"
        return RawRecord(index, line, faults=((got, "JSON in UTF-8"),))
    return _line(text, Parser(), index, line)


def _items(window: Window) -> Iterator[RawRecord]:
    if window.peek() != "[":
        yield wrong(window, 0, "a JSON list; JSONL is named .jsonl", "nothing")
        return
    raw = None
    for raw in read_list(window):
        yield raw
    if raw is None or not raw.ends:
        yield from nothing_more(window, 0 if raw is None else raw.index + 1, "list")


def read_list(window: Window) -> Iterator[RawRecord]:
    """Returns the items of the list at the window, and moves behind it. A broken item is the last."""
    parser, index = Parser(), 0
    window.take(window.at + 1)
    closed = window.peek() == "]"
    while not closed:
        yield (raw := take_value(window, parser, index))
        if raw.ends:
            return
        index += 1
        after = window.peek()
        closed = after == "]"
        if not closed and after != ",":
            yield wrong(window, index, "`,` or `]` after a record", "the end of the file")
            return
        if not closed:
            window.take(window.at + 1)
            window.peek()
    window.take(window.at + 1)


def take_value(window: Window, parser: Parser, index: int) -> RawRecord:
    """Returns the value at the window, and moves behind it. Nothing is read after a broken one."""
    start = window.line
    try:
        value, end, faults = window.value(parser)
    except json.JSONDecodeError as error:
        if error.pos - window.at > MAX_RECORD or (error.msg.startswith("Unterminated") and window.is_full):
            return _too_long(index, start)._replace(ends=True)
        line = start + window.text.count("\n", window.at, error.pos)
        before = window.column if error.lineno == 1 else 0
        faults = (_broken(error, before), *window.undecoded(error.pos + 1))
        return RawRecord(index, line, faults=faults, ends=True)
    if end - window.at > MAX_RECORD:
        window.take(end)
        return _too_long(index, start)
    no_surrogates, offset = _no_surrogates(window.text, window.at, end), window.offset
    faults += window.undecoded(end)
    length = window.take(end)
    return RawRecord(index, start, value, faults, offset, length, no_surrogates)


def nothing_more(window: Window, index: int, what: str) -> Iterator[RawRecord]:
    """Yields a record with a fault if anything follows."""
    if window.peek():
        yield wrong(window, index, f"nothing after the {what}", "")


def wrong(window: Window, index: int, expected: str, at_end: str) -> RawRecord:
    """Returns a record whose fault is the text at the window."""
    got = repr(window.text[window.at : window.at + 20]) if window.text[window.at :] else at_end
    faults = ((got, expected), *window.undecoded(window.at + 1))
    return RawRecord(index, window.line, faults=faults, ends=True)


def _lines(window: Window) -> Iterator[RawRecord]:
    parser, index = Parser(), 0
    while window.at < len(window.text) or window.more():
        text = window.next_line()
        if text is None or len(text) > MAX_RECORD:
            yield _too_long(index, window.line)
            index += 1
            window.pass_line()
        elif text.strip(" \t\r"):
            record, offset = _line(text, parser, index, window.line), window.offset
            end = window.at + len(text)
            faults, fine = record.faults + window.undecoded(end), _no_surrogates(text, 0, len(text))
            yield record._replace(offset=offset, length=window.take(end), faults=faults, no_surrogates=fine)
            index += 1
        else:
            window.take(window.at + len(text))
        window.take(min(window.at + 1, len(window.text)))


def _too_long(index: int, line: int) -> RawRecord:
    got = f"a record of more than {MAX_RECORD} characters"
    return RawRecord(
        index, line, faults=((got, "a shorter one; images may be files in place of `data:` addresses"),)
    )


def _line(text: str, parser: Parser, index: int, number: int) -> RawRecord:
    try:
        value, end, faults = parser.at(text, skip(text, 0))
    except json.JSONDecodeError as error:
        return RawRecord(index, number, faults=(_broken(error),))
    if (end := skip(text, end)) != len(text):
        faults += ((repr(text[end : end + 20]), "one value a line"),)
    return RawRecord(index, number, value, faults)


def _no_surrogates(text: str, start: int, end: int) -> bool:
    return text.find("\\ud", start, end) < 0 and text.find("\\uD", start, end) < 0


def _broken(error: json.JSONDecodeError, before: int = 0) -> tuple[str, str]:
    """Returns (got, expected) for broken JSON. `before`: characters of the line before the text."""
    return f"broken JSON at column {before + error.colno}: {error.msg}", "JSON"
