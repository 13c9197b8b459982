"""Finds out of which kind the files of a data set are, by their names and their first record."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lmmkit.data.sources.json_records import read_records
from lmmkit.data.sources.json_stream import Window
from lmmkit.data.sources.tables.patterns import files_of
from lmmkit.data.sources.tables.table_names import is_table

SourceKind = Literal["llava", "messages", "webdataset", "coco", "vqa"]


def source_kind(path: Path, annotations: Path | None) -> SourceKind:
    """Returns the kind of a data set. `annotations`: of a VQA data set, its second file.

    Raises `UserError` for a JSON file that cannot be read.
    """
    if annotations is not None:
        return "vqa"
    if path.suffix == ".tar":
        return "webdataset"
    if is_table(path):
        return "messages"
    with Window(next(iter(files_of(path)), path)) as window:
        if window.peek() == "{" and path.suffix != ".jsonl":
            return "coco"
        first = next(read_records(window), None)
    record = first.value if first is not None else None
    turns = record.get("conversations") if isinstance(record, dict) and "messages" not in record else None
    turn = turns[-1] if isinstance(turns, list) and turns else None
    return "llava" if isinstance(turn, dict) and "from" in turn else "messages"
