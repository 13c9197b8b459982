"""Finds the characters of a text from which each of its ids is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

Offsets: TypeAlias = "list[tuple[int, int]]"
"""For each id the first character, and the one after the last. They are equal for an id without characters of its
own: a dummy prefix, or all bytes but one of a character that is written in bytes."""


def offsets_of(ids: Sequence[int], ways: Iterable[tuple[Sequence[int], Offsets]]) -> Offsets:
    """Returns the offsets of `ids`, by the way of encoding that gave them.

    The last way may have a dummy prefix that was removed from the first id (`encode_unprefixed`).
    """
    found, offsets = [], []
    for found, offsets in ways:
        if list(found) == list(ids):
            return list(offsets)
    more = len(found) - len(ids)  # 1 if the prefix was an id of its own
    assert more in (0, 1) and list(found[1:]) == list(ids[1 - more :]), "`ids` are those of the text"
    return list(offsets[more:])


def read_pieces(proto: bytes, text: str) -> tuple[list[int], Offsets]:
    """Returns the ids and offsets in a serialized `SentencePieceText`, whose own offsets count bytes of UTF-8.

    The library's readers of this message have other names in each of its releases.
    """
    byte_of = [0]
    for char in text:
        byte_of.append(byte_of[-1] + len(char.encode()))
    char_at = {byte: number for number, byte in enumerate(byte_of)}
    of_pieces = [
        {key: number for key, number, _ in _fields(piece)} for key, _, piece in _fields(proto) if key == 2
    ]
    return [each[2] for each in of_pieces], [(char_at[each[4]], char_at[each[5]]) for each in of_pieces]


def _fields(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yields for each field of a protobuf message its key, its integer or 0, and the bytes of all else."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value, b""
        else:
            size, at = _varint(message, at) if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], at)
            yield tag >> 3, 0, message[at : at + size]
            at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (message[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if message[at - 1] < 128:
            return value, at
