"""Reads the lists of a JSON object, such as `images` and `annotations` of a COCO file, item by item."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lmmkit.data.sources.joined.known_files import list_name, object_name
from lmmkit.data.sources.json_records import RawRecord, nothing_more, read_list, take_value, wrong
from lmmkit.data.sources.json_stream import Parser, Window
from lmmkit.errors import UserError
from lmmkit.errors.data import OFFICIAL_FILE


def read_lists(window: Window, name: str, expected: str) -> Iterator[tuple[str, RawRecord]]:
    """Returns (key, value) of the object in the file, and in place of its list `name` (name, item) of each item. Of
    other lists, which may be as long, only items with faults.

    If the object is broken or ends too early, the last value has faults and `ends`. Raises `UserError`, which says what
    was `expected`, for a file that contains no object, or an object without the list.
    """
    if window.peek() == "[":
        first = next(read_list(window), None)
        raise refused(window.path, list_name(None if first is None else first.value), expected)
    if window.peek() != "{":
        raise refused(window.path, "no JSON object", expected)
    return _read(window, name, expected)


def _read(window: Window, name: str, expected: str) -> Iterator[tuple[str, RawRecord]]:
    parser, known, raw = Parser(), dict[str, None](), RawRecord(0, window.line)
    window.take(window.at + 1)
    closed = window.peek() == "}"
    while not closed:
        key = take_value(window, parser, 0) if window.peek() == '"' else RawRecord(0, window.line)
        if not isinstance(key.value, str) or window.peek() != ":":
            yield "", wrong(window, 0, "a key and `:`", "the end of the file")
            return
        if key.faults:
            yield "", key._replace(ends=True)
            return
        if key.value in known:
            yield (
                "",
                RawRecord(
                    0, key.line, faults=((f"key {key.value[:80]!a} twice", "each key once"),), ends=True
                ),
            )
            return
        known[key.value] = None
        window.take(window.at + 1)
        if window.peek() == "[":
            for raw in read_list(window):
                if key.value == name or raw.faults:
                    yield key.value, raw
        elif key.value == name:
            raise refused(window.path, f"no list under `{name}`", expected)
        else:
            yield key.value, (raw := take_value(window, parser, 0))
        if raw.ends:
            return
        after = window.peek()
        closed = after == "}"
        if not closed and after != ",":
            yield "", wrong(window, 0, "`,` or `}` after a value", "the end of the file")
            return
        if not closed:
            window.take(window.at + 1)
            window.peek()
    window.take(window.at + 1)
    if name not in known:
        raise refused(window.path, object_name(known), expected)
    for raw in nothing_more(window, 0, "object"):
        yield "", raw


def refused(path: Path, got: str, expected: str) -> UserError:
    """Returns the error of a file of another form."""
    return UserError(OFFICIAL_FILE.at(str(path), got=got, expected=expected))
