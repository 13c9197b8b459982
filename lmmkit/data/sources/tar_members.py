"""Where the files of a tar archive lie. Only headers are read: nothing is unpacked, no name is used.

Reads what WebDataset writes and what tar programs write of plain files: ustar, GNU and pax, without
compression, holes, or parts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lmmkit.data.sources.json_stream import open_regular
from lmmkit.errors import Problem, UserError

BLOCK = 512
MAX_NAME = 64 * 1024  # bytes of a long name, or of a pax header
_MEND = "Write the shard anew."


class Member(NamedTuple):
    """A regular file in an archive: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


def members(path: Path) -> Iterator[Member]:
    """The regular files of the archive in order. Raises `UserError` for what is no whole archive."""
    with open_regular(path) as file:
        end = os.fstat(file.fileno()).st_size
        at, name, size = 0, "", -1
        while True:
            header = _read(file, path, at, BLOCK)
            if header == bytes(BLOCK):
                return
            kind, said, data = _header(path, at, header)
            data = size if size >= 0 else data
            if at + BLOCK + data > end:
                got = f"{end} bytes"
                raise _wrong(path, at, got, f"{at + BLOCK + data}, as the header there says")
            if kind == b"L":  # GNU: the next header's name
                name = _text(path, at, _long(file, path, at, data).rstrip(b"\0"))
            elif kind == b"x":
                pax = _pax(path, at, _long(file, path, at, data))
                name, size = pax.get("path", name), int(pax.get("size", size))
            else:
                if kind in (b"0", b"\0"):
                    yield Member(name or _text(path, at, said), at + BLOCK, data)
                elif kind in (b"S", b"M"):
                    raise _wrong(path, at, "a file with holes or in parts", "plain files")
                name, size = "", -1
            at += BLOCK + -(-data // BLOCK) * BLOCK


def _header(path: Path, at: int, header: bytes) -> tuple[bytes, bytes, int]:
    """(kind, name, bytes) of a member; a name that a longer one came before may end in mid character."""
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if _number(header[148:156]) != total:
        raise _wrong(path, at, "no header of a tar archive", "one, with the sum of its bytes")
    size = _number(header[124:136])
    if size is None:
        raise _wrong(path, at, f"the size {header[124:136]!a}", "an octal number")
    kind = header[156:157]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    name = header[:100].split(b"\0")[0]
    return kind, prefix + b"/" * bool(prefix) + name, size if kind not in b"12345" else 0


def _number(field: bytes) -> int | None:
    """Octal text, or a large number in binary as GNU writes it."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    return int(digits or b"0", 8) if set(digits) <= set(b"01234567") else None


def _long(file: BinaryIO, path: Path, at: int, size: int) -> bytes:
    if size > MAX_NAME:
        raise _wrong(path, at, f"a name of {size} bytes", f"at most {MAX_NAME}")
    return _read(file, path, at + BLOCK, size)


def _pax(path: Path, at: int, data: bytes) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE\\n"; the keys that matter."""
    found = {}
    while data:
        length, _, rest = data.partition(b" ")
        n = int(length) if length.isdigit() and len(length) < 8 else 0
        key, equals, value = data[len(length) + 1 : n - 1].partition(b"=")
        if not n or not equals or data[n - 1 : n] != b"\n":
            raise _wrong(path, at, "a broken pax header", "LENGTH KEY=VALUE")
        if key == b"path" or (key == b"size" and value.isdigit() and len(value) < 19):
            found[key.decode()] = _text(path, at, value)
        data = data[n:]
    return found


def _text(path: Path, at: int, name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise _wrong(path, at, f"the name {name[:40]!a}", "UTF-8") from error


def _read(file: BinaryIO, path: Path, at: int, size: int) -> bytes:
    try:
        data = os.pread(file.fileno(), size, at)
    except OSError as error:
        raise _wrong(path, at, error.strerror or str(error), "a file to read") from error
    if len(data) < size:
        raise _wrong(path, at, "the end of the file", "two empty blocks that end an archive")
    return data


def _wrong(path: Path, at: int, got: str, want: str) -> UserError:
    return UserError(Problem("records/shard", f"{path} (byte {at})", got, want, _MEND))
