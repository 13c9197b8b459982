"""Indexes the records of data files in one pass, and reads them by number through the index.

`IndexBuilder` makes the index, in either format. `IndexedRecords` reads the records; its subclasses
(`llava_json.py`, `webdataset_shards.py`) find the images.
"""

from __future__ import annotations

import array
import os
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmmkit.api.sample import Image
from lmmkit.data.sources.bad_records import BadRecord, record_place
from lmmkit.data.sources.index_cache import Index, open_index
from lmmkit.data.sources.json_records import RawRecord, parse_record
from lmmkit.data.sources.record_parser import RecordParser, RecordSize, measure_record
from lmmkit.errors import Problem, UserError
from lmmkit.errors.data import RECORDS_CHANGED, RECORDS_FILE

BAD_KEPT = 100_000  # problems that an index stores
NOTES_KEPT = 100  # different notes that an index counts apart
OPEN_FILES = 64  # files that a process keeps open
# `words` is below 0 if the record has no image; `repeats` is how often its number is added to its key.
MORE_NOTES = "further notes"
_RECORD = np.dtype([("file", "<u4"), ("offset", "<u8"), ("length", "<u8"), ("line", "<u8"), ("number", "<u8"),
                    ("words", "<i4"), ("repeats", "<u1")])  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Indexing:
    """Describes how a source is indexed. Without an index of its files, or with `rebuild`, one pass over the
    files makes it; it calls `on_bad_record` for every problem of every bad record, and `progress` with the
    number of bytes read. `columns`: of a source of kind `messages`, the names of its columns. `official`: `coco` or
    `vqa`, for a source of this kind; `annotations`: the second file of `vqa`."""

    template: str
    rebuild: bool = False
    on_bad_record: Callable[[BadRecord], None] = lambda bad: None
    progress: Callable[[int], None] = lambda size: None
    columns: Mapping[str, str] | None = None
    official: str | None = None
    annotations: Path | None = None

    def open(
        self, kind: str, path: Path, files: Sequence[Path], build: Callable[[], Index], *,
        beside: Sequence[int] = (),
    ) -> Index:  # fmt: skip
        """Returns the index of `files`, which `path` names. `build` makes the pass. `beside`: what an index depends on
        beside the files."""
        rules = "plain" if self.template == "plain" else "turns"  # which records are good
        form = "" if self.columns is None else f" messages {sorted(self.columns.items())}"
        key = f"{kind} {os.path.realpath(path)} {path.suffix} {rules}{form}"
        return open_index(key, files, build, rebuild=self.rebuild, beside=beside)


def as_table(dtype: np.dtype, columns: Iterable[array.array]) -> np.ndarray:
    """Returns the columns as one array."""
    columns = list(columns)
    found = np.empty(len(columns[0]), dtype)
    for name, column in zip(dtype.names or (), columns, strict=True):
        found[name] = np.frombuffer(column, column.typecode)
    return found


class IndexBuilder:
    """Collects what one pass over `files` finds: the good records, and the problems of the bad ones.

    `len()` is the number of good records.
    """

    def __init__(self, files: Sequence[Path], indexing: Indexing) -> None:
        self.files, self.indexing = files, indexing
        self.counts: Counter[str] = Counter(records=0, bad_records=0, problems=0, systems=0)
        self.notes: Counter[str] = Counter()
        self._columns = [array.array(code) for code in "IQQQQiB"]
        self._keys: set[str] = set()
        self._bad: list[BadRecord] = []
        self._ended: list[str] = []

    def __len__(self) -> int:
        return len(self._columns[0])

    def add(self, raw: RawRecord, file: int = 0, name: str = "") -> RecordSize | None:
        """Adds a record if it is good, and returns its measures. Else reports all its problems.

        `file` is a number in `files`. `name` identifies a record without an id in messages.
        """
        if raw.ends:
            self._ended.append(record_place(str(self.files[file]), raw.line, raw.index))
        size = measure_record(raw, self.indexing.template)
        if size is None:
            parser = RecordParser(template=self.indexing.template)
            record = parser.read(raw)
            if record is None:
                self.refuse(raw, parser.problems, file, parser.id or name)
                return None
            size = parser.size(record)
        repeats, key = 0, size.key or str(raw.index)
        while key in self._keys:
            repeats, key = repeats + 1, f"{key}#{raw.index}"
        self._keys.add(key)
        words = size.words if size.images else -size.words
        values = (file, raw.offset, raw.length, raw.line, raw.index, words, min(repeats, 255))
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        self.counts["records"] += 1
        self.counts["systems"] += size.system
        for note in size.notes:
            self.notes[note if note in self.notes or len(self.notes) < NOTES_KEPT else MORE_NOTES] += 1
        return size

    def refuse(self, raw: RawRecord, problems: Sequence[tuple[str, Problem]], file: int, name: str) -> None:
        """Reports the problems of a bad record, each with the part of the record."""
        self.counts.update(records=1, bad_records=1, problems=len(problems))
        for part, problem in problems:
            bad = BadRecord.of(problem, (str(self.files[file]), raw.line, raw.index), name, part)
            self.indexing.on_bad_record(bad)
            if len(self._bad) < BAD_KEPT:
                self._bad.append(bad)

    def index(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Index:
        """Returns the index. `meta` and `arrays` are what the format adds to it."""
        arrays = {"records": as_table(_RECORD, self._columns), **arrays}
        found = {**self.counts, "notes": dict(self.notes), "ended": self._ended, **meta}
        return Index(found, arrays, tuple(self._bad))


class OpenFiles:
    """Reads bytes of files, of which the last 64 stay open. Pickles as their paths."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._handles: dict[int, int] = {}
        weakref.finalize(self, _close, self._handles)

    def __reduce__(self) -> tuple[object, ...]:
        return OpenFiles, (self.paths,)

    def read(self, number: int, offset: int, length: int) -> tuple[bytes, os.stat_result]:
        """Returns bytes of file `number`, and its state. Raises `UserError` if it cannot be read."""
        try:
            if number not in self._handles:
                if len(self._handles) >= OPEN_FILES:
                    os.close(self._handles.pop(next(iter(self._handles))))
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
                self._handles[number] = os.open(self.paths[number], flags)
            handle = self._handles[number]
            return os.pread(handle, length, offset), os.fstat(handle)
        except OSError as error:
            where, got = str(self.paths[number]), error.strerror or str(error)
            raise UserError(RECORDS_FILE.at(where, got=got, expected="a file that can be read")) from error


def _close(handles: dict[int, int]) -> None:
    while handles:
        os.close(handles.popitem()[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexedRecords(ABC):
    """Reads the good records of indexed files. They are numbered from 0, without the bad ones.

    `path` is the file, or the pattern that names the files.
    """

    path: Path
    files: OpenFiles
    index: Index

    def __len__(self) -> int:
        return len(self.index.arrays["records"])

    def record(self, i: int) -> RawRecord:
        """Reads good record i. Raises `UserError` if its file changed since it was indexed."""
        at = self.index.arrays["records"][i]
        raw = self.parsed(int(at["file"]), int(at["offset"]), int(at["length"]))
        return raw._replace(index=int(at["number"]), line=int(at["line"]))

    def parsed(self, file: int, offset: int, length: int) -> RawRecord:
        """Returns the value at a place of file number `file`. Raises `UserError` if the file changed."""
        data, stat = self.files.read(file, offset, length)
        if [stat.st_size, stat.st_mtime_ns] != self.index.meta["stat"][file]:
            where = str(self.files.paths[file])
            raise UserError(RECORDS_CHANGED.at(where, got="another size or time of change"))
        return parse_record(data, 0, 0)

    def key(self, i: int, id_: str) -> str:
        """Returns the key of record i in its source: its id, plus the record number if the id is a repeat."""
        at = self.index.arrays["records"][i]
        return f"{id_ or at['number']}" + f"#{at['number']}" * int(at["repeats"])

    def place(self, i: int) -> tuple[str, int, int]:
        """Returns (file, line or 0, record number) of record i."""
        at = self.index.arrays["records"][i]
        return str(self.files.paths[int(at["file"])]), int(at["line"]), int(at["number"])

    @abstractmethod
    def images(self, i: int, paths: tuple[str, ...]) -> tuple[Image, ...]:
        """Returns the images of record i, which names them `paths`."""

    @property
    def contains_images(self) -> bool:
        """Returns whether images are in the files of the records."""
        return False

    @property
    def image_folder(self) -> str:
        """Returns the folder of the images that records name; empty without one."""
        return ""

    def names(self, i: int, paths: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the relative paths that the images of record i have, or had before; empty ones if not known."""
        return ("",) * len(paths)

    @abstractmethod
    def all_images(self) -> Iterator[tuple[int, Image]]:
        """Yields each image once, with its first record."""

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Returns what distinguishes this data from other data."""

    def missing(self) -> list[tuple[int, str, str]]:
        """Returns (record, absolute path, description) of each image file that is missing or not a regular file."""
        return []

    def paths_outside(self) -> list[tuple[str, str]]:
        """Returns (absolute path, description) of each image that a link takes out of the image folder."""
        return []
