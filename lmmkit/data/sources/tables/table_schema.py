"""Finds which columns of parquet and Arrow files are read, and how, from the types of the columns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmkit.data.sources.json_records import RawRecord
from lmmkit.data.sources.messages_records import COLUMNS, as_llava, column_of, without_files
from lmmkit.data.sources.record_keys import OWN_KEYS
from lmmkit.data.tables.table_file import TableFile, open_table
from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.errors.data import TABLE_COLUMNS

EMBEDDED = re.compile(r"([0-9]{1,6})\.bytes")  # how a record in LLaVA's form names an image of its cell
_TEXT = "(?:large_)?string(?:_view)?"
_BYTES = "(?:large_)?binary(?:_view)?"
_SIMPLE = f"(?:{_TEXT}|bool|u?int(?:8|16|32|64)|float|double|halffloat)"
_KEPT = re.compile(rf"{_SIMPLE}|(?:large_)?list<\w+: {_SIMPLE}(?: not null)?>")
_ITEM = re.compile(r"list<\w+:")  # writers name the items of a list differently
_CODED = re.compile(r"dictionary<values=(\w+), indices=\w+, ordered=\w+>")  # read as its values
_LIST = re.compile(r"(?:large_)?list<\w+: (.*?)(?: not null)?>")
_FIELD = rf"(?:bytes: {_BYTES}|path: {_TEXT}|(?:bytes|path): null)(?: not null)?"
_STRUCT = re.compile(rf"struct<((?:{_FIELD}(?:, )?){{1,2}})>")


@dataclass(frozen=True)
class Reading:
    """Says which columns of the files are read, and how. `columns`: the mapping of the recipe. `parts`: the columns
    of turns, images, system prompts and ids. `others`: columns that `meta` keeps. `image`: what a cell of images
    contains, "struct", "binary" or "string". `fields`: of its struct. `notes`: the columns that are not read."""

    columns: Mapping[str, str]
    parts: Mapping[str, str]
    others: tuple[str, ...] = ()
    image: str = ""
    fields: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    folder: bool = True  # of images that cells name

    @property
    def all(self) -> list[str]:
        """Returns the columns of a record."""
        return [*self.parts.values(), *self.others]

    @property
    def texts(self) -> list[str]:
        """Returns the columns of a record without the bytes of its images."""
        found = [name for part, name in self.parts.items() if part != "images"] + list(self.others)
        images = self.parts.get("images")
        if images is None or self.image == "binary":
            return found
        return [*found, images if self.image == "string" else f"{images}.path"]

    def cell(self, cells: Mapping[str, Any]) -> Any:
        """Returns the cell of a record's images without their bytes; None if there is none."""
        return cells.get(self.parts["images"]) if "images" in self.parts else None

    def record(self, raw: RawRecord, cells: Mapping[str, Any], images: Sequence[object]) -> RawRecord:
        """Returns the record that `cells` contain, in LLaVA's form, with the names of its `images`."""
        value = {key: _plain(each) for key, each in cells.items() if key != self.parts.get("images")}
        if "images" in self.parts:
            value[self.parts["images"]] = list(images)
        raw = as_llava(raw._replace(value=value, notes=self.notes, no_surrogates=True), self.columns)
        found = raw.value if isinstance(raw.value, dict) and not raw.problems else {}
        turns = found.get("conversations", ())
        length = sum(
            len(text)
            for turn in turns
            if isinstance(turn, dict) and isinstance(text := turn.get("value"), str)
        )
        own = {name for name in images if isinstance(name, str) and EMBEDDED.fullmatch(name)}
        notes = (*self.notes, *(n for n in raw.notes if n not in self.notes))
        raw = raw._replace(length=length, notes=notes, inside=raw.inside | own)
        return raw if self.folder else without_files(raw)


def reading_of(files: Sequence[Path], columns: Mapping[str, str], *, folder: bool) -> Reading:
    """Returns how the files are read, after comparing the columns of each with those of the first."""
    problems: list[Problem] = []
    first: Mapping[str, str] | None = None
    how = None
    for path in files:
        try:
            table = open_table(str(path))
            types = {name: _ITEM.sub("list<item:", _kind(each)) for name, each in table.types.items()}
            if first is None:
                first, how = types, _reading(table, columns, folder)
        except UserError as error:
            problems += error.problems
            continue
        for name in dict.fromkeys([*first, *types]):
            if first.get(name) != types.get(name):
                got = f"column `{name[:80]}` {_typed(types, name)}"
                expected = f"{_typed(first, name)}, as in {files[0]}"
                problems.append(TABLE_COLUMNS.at(str(path), got=got, expected=expected))
    raise_all(problems)
    assert how is not None
    return how


def _typed(types: Mapping[str, str], name: str) -> str:
    return f"of type {types[name][:200]}" if name in types else "absent"


def _reading(table: TableFile, columns: Mapping[str, str], folder: bool) -> Reading:
    """Returns how a file is read. Raises `UserError` for columns that cannot be."""
    problems: list[Problem] = []
    parts: dict[str, str] = {}
    for part in COLUMNS:
        found = column_of(table.types, columns, part)
        if isinstance(found, Problem):
            problems.append(TABLE_COLUMNS.at(table.path, got=found.got, expected=found.expected))
        elif found is not None:
            parts[part] = found
        elif part in columns:
            got = f"no column `{columns[part]}`; the columns {', '.join(table.types)[:200]}"
            problems.append(
                TABLE_COLUMNS.at(table.path, got=got, expected=f"`{columns[part]}`, as `columns` says")
            )
    image, fields = "", ()
    for part, name in parts.items():
        kind = _kind(table.types[name])
        if part == "messages" and (not _LIST.fullmatch(kind) or _has_bytes(table.types[name])):
            expected = "a list of turns without images, which have a column of their own"
            problems.append(
                TABLE_COLUMNS.at(table.path, got=f"column `{name}` of type {kind[:200]}", expected=expected)
            )
        if part == "images":
            image, fields = _image_type(kind)
            if not image:
                expected = "images as {bytes, path}, bytes or paths, or a list of them"
                problems.append(
                    TABLE_COLUMNS.at(
                        table.path, got=f"column `{name}` of type {kind[:200]}", expected=expected
                    )
                )
    raise_all(problems)
    kinds = {name: _kind(each) for name, each in table.types.items()}
    others = [
        name for name, kind in kinds.items()
        if name not in parts.values() and name not in OWN_KEYS and kind != "null"
    ]  # fmt: skip
    kept = tuple(name for name in others if _KEPT.fullmatch(kinds[name]))
    notes = [
        f"`{name[:40]}` is not kept: it is no text, number or list of them"
        for name in others
        if name not in kept
    ]
    notes += [
        f"`{name}` is not read: `columns` names another one"
        for name in table.types if name in OWN_KEYS and name not in parts.values()
    ]  # fmt: skip
    return Reading(columns, parts, kept, image, fields, tuple(notes), folder)


def _image_type(kind: str) -> tuple[str, tuple[str, ...]]:
    """Returns what a cell of images contains, by the type of its column, and the fields of a struct."""
    inner = found[1] if (found := _LIST.fullmatch(kind)) else kind
    if struct := _STRUCT.fullmatch(inner):
        given = (name for name in ("bytes", "path") if f"{name}: " in struct[1])
        fields = tuple(name for name in given if f"{name}: null" not in struct[1])  # null: no record has it
        if not fields:
            return "", ()
        if fields == ("bytes",):
            return "binary", fields
        return ("struct" if "bytes" in fields else "string"), fields
    if re.fullmatch(_BYTES, inner):
        return "binary", ()
    return (
        ("string", ()) if re.fullmatch(f"{_TEXT}|null", inner) else ("", ())
    )  # null: no record has an image


def _kind(type_: Any) -> str:
    """Returns the type of a column in words; of texts that are stored as numbers in a list of texts, that of a text."""
    return _CODED.sub(r"\1", str(type_))


def _has_bytes(type_: Any) -> bool:
    """Returns whether a column of this type contains bytes."""
    import pyarrow as arrow

    if arrow.types.is_struct(type_):
        return any(_has_bytes(type_.field(i).type) for i in range(type_.num_fields))
    inner = getattr(type_, "value_type", None)
    return "binary" in str(type_) if inner is None else _has_bytes(inner)


def _plain(value: object) -> object:
    """Returns a cell as JSON has it: a NaN, as pandas writes for a value that is missing, is none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
