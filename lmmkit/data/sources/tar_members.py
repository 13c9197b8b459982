"""Finds the files in a tar archive. Only headers are read: nothing is unpacked, no name becomes a path.

Python's `tarfile` parses the headers and trusts them, so `_Headers` bounds what it may read.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lmmkit.data.sources.json_stream import open_regular
from lmmkit.errors import UserError
from lmmkit.errors.data import RECORDS_SHARD

_BLOCK = tarfile.BLOCKSIZE
_MAX_HEADERS = 64 * 1024  # bytes of headers before one file: a long name, pax records
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
_PARTIAL = b"M"  # the next part of a file that began in another archive


class Member(NamedTuple):
    """Describes a regular file in an archive: its name, and the offset and number of its bytes."""

    name: str
    offset: int
    size: int


def members(path: Path) -> Iterator[Member]:
    """Yields the regular files of the archive in order. Raises `UserError` if it is incomplete or bad."""
    with open_regular(path) as file:
        headers: Any = _Headers(path, file)
        end = os.fstat(file.fileno()).st_size
        try:
            with tarfile.open(fileobj=headers, mode="r:", encoding="utf-8") as tar:
                while (info := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header in memory
                    headers.left = _MAX_HEADERS
                    _check(path, info, end)
                    if info.type in _PLAIN:
                        yield Member(info.name, info.offset_data, info.size)
                headers.seek(tar.offset)
                if headers.read(_BLOCK) != bytes(_BLOCK):  # tarfile treats a bad header as the end
                    got = "no header of a tar archive"
                    raise _wrong(path, tar.offset, got, "one, with the sum of its bytes")
        except (tarfile.TarError, ValueError, RecursionError) as error:
            raise _wrong(path, file.tell(), str(error)[:200], "the headers of a tar archive") from error


def _check(path: Path, info: tarfile.TarInfo, end: int) -> None:
    """Raises `UserError` for a file that is not plain, not complete, or has a broken name."""
    if info.issparse() or info.type == _PARTIAL:
        raise _wrong(path, info.offset, "a file with holes or in parts", "plain files")
    if not 0 <= info.size <= end - info.offset_data:  # below 0 tarfile reads one header for ever
        got = f"{end} bytes"
        raise _wrong(path, info.offset, got, f"{info.offset_data + info.size}, as the header there says")
    if re.search("[\0\ud800-\udfff]", info.name):  # tarfile decodes bytes that are not UTF-8 to surrogates
        raise _wrong(path, info.offset, f"the name {info.name[:40]!a}", "UTF-8, without NUL")


class _Headers:
    """Reads headers for `tarfile`, at most `left` bytes before the next file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.left = path, file, _MAX_HEADERS
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        at = self.tell()
        if not 0 <= size <= self.left:
            raise _wrong(self.path, at, f"headers of {size} more bytes", f"at most {_MAX_HEADERS} for a file")
        self.left -= size
        try:
            data = self.file.read(size)
        except OSError as error:
            raise _wrong(self.path, at, error.strerror or str(error), "a file to read") from error
        if len(data) < size:
            raise _wrong(self.path, at, "the end of the file", "two empty blocks that end an archive")
        if re.search(rb"[0-9]{200}", data):  # before Python 3.11.10 pax headers take quadratic time
            raise _wrong(self.path, at, "a number of 200 digits", "shorter ones")
        return data


def _wrong(path: Path, at: int, got: str, expected: str) -> UserError:
    return UserError(RECORDS_SHARD.at(f"{path} (byte {at})", got=got, expected=expected))
