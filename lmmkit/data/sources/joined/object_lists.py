"""Reads the lists of a JSON object, such as `images` and `annotations` of a COCO file, item by item."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lmmkit.data.sources.json_records import RawRecord, nothing_more, read_list, take_value, wrong
from lmmkit.data.sources.json_stream import Parser, Window
from lmmkit.errors import UserError
from lmmkit.errors.data import RECORDS_FILE


def read_lists(window: Window, name: str) -> Iterator[tuple[str, RawRecord]]:
    """Returns (key, value) of the object in the file, and in place of its list `name` (name, item) of each item.

    If the object is broken or ends too early, the last value has faults and `ends`. Raises `UserError` for a file
    that contains no object, or an object without the list.
    """
    if window.peek() != "{":
        got = "a JSON list" if window.peek() == "[" else "no JSON object"
        raise _no_list(window.path, got, name)
    return _read(window, name)


def _read(window: Window, name: str) -> Iterator[tuple[str, RawRecord]]:
    parser, known, raw = Parser(), list[str](), RawRecord(0, window.line)
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
        known.append(key.value)
        window.take(window.at + 1)
        if window.peek() == "[" and key.value == name:
            for raw in read_list(window):
                yield key.value, raw
        elif key.value == name:
            raise _no_list(window.path, f"no list under `{name}`", name)
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
        raise _no_list(window.path, f"an object with the keys {', '.join(known)[:200] or 'none'}", name)
    for raw in nothing_more(window, 0, "object"):
        yield "", raw


def _no_list(path: Path, got: str, name: str) -> UserError:
    return UserError(RECORDS_FILE.at(str(path), got=got, expected=f"a JSON object with the list `{name}`"))
