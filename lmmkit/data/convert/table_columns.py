"""Finds the columns that a parquet file of records needs: the other keys of records and turns, and their types."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lmmkit.data.convert.rows import Row
from lmmkit.data.sources.messages_records import COLUMNS

_OWN = frozenset(name for names in COLUMNS.values() for name in names)
_OF_TURNS = frozenset({"role", "from", "content", "value"})
_EXACT = 2**53  # integers up to it are equal to a float
_EMPTY, _SEVERAL = "an empty list", "several kinds"


@dataclass(frozen=True)
class TableColumns:
    """Holds the Arrow type of each other key that has a column, of records and of turns, and for the others why they
    have none."""

    of_records: dict[str, Any]
    of_turns: dict[str, Any]
    records_lost: dict[str, str]
    turns_lost: dict[str, str]
    system: bool
    images: bool


def table_columns(rows: Iterable[Row]) -> TableColumns:
    """Returns the columns for all rows."""
    records, turns = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    system = images = False
    for row in rows:
        system, images = system or row.system is not None, images or bool(row.images)
        for key, value in row.others.items():
            records[key].add(_kind(value))
        for turn in row.turns:
            for key, value in turn.others.items():
                turns[key].add(_kind(value))
    of_records, records_lost = _types(records, _OWN)
    of_turns, turns_lost = _types(turns, _OF_TURNS)
    return TableColumns(of_records, of_turns, records_lost, turns_lost, system, images)


def _types(kinds: dict[str, set[str]], taken: frozenset[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the types of the keys that have a column, and reasons for the others."""
    types, lost = {}, {}
    for key, found in kinds.items():
        if key in taken or not _encodable(key) or not key:
            lost[key] = "a column cannot have this name"
        elif (kind := _column(found)) is None:
            lost[key] = f"{' and '.join(sorted(found))} cannot be a column"
        else:
            types[key] = kind
    return types, lost


def _kind(value: object) -> str:
    """Returns the kind of a value, in words."""
    if isinstance(value, list):
        kinds = {_kind(each) for each in value}
        one = _one(kinds) or (min(kinds) if len(kinds) == 1 else _SEVERAL)
        return f"a list of {one}" if kinds else _EMPTY
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        exact, fits = abs(value) <= _EXACT, -(2**63) <= value < 2**63
        return "integers" if exact else "large integers" if fits else "an integer of more than 64 bits"
    if isinstance(value, float):
        return "numbers"
    if isinstance(value, str):
        return "texts" if _encodable(value) else "half of a surrogate pair"
    if isinstance(value, dict):
        return "an object"
    return "null" if value is None else f"a {type(value).__name__}"


def _one(kinds: set[str]) -> str | None:
    """Returns the kind that can contain values of all these kinds."""
    for kind, contains in (
        ("texts", {"texts"}), ("true or false", {"true or false"}), ("integers", {"integers"}),
        ("large integers", {"integers", "large integers"}), ("numbers", {"integers", "numbers"}),
    ):  # fmt: skip
        if kinds <= contains:
            return kind
    return None


def _column(kinds: set[str]) -> Any:
    """Returns the Arrow type for values of these kinds; None if there is none."""
    import pyarrow as arrow

    types = {
        "texts": arrow.string(), "true or false": arrow.bool_(), "integers": arrow.int64(),
        "large integers": arrow.int64(), "numbers": arrow.float64(),
    }  # fmt: skip
    lists = {kind for kind in kinds if kind.startswith("a list of ")}
    if kinds - lists - {_EMPTY}:
        one = _one(kinds)
        return types[one] if one is not None else None
    one = _one({kind.removeprefix("a list of ") for kind in lists})
    return None if one is None else arrow.list_(types[one])


def _encodable(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)
