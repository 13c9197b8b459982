"""Reads a records file in LLaVA's format through an index. A record is parsed when it is read."""

from __future__ import annotations

import array
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lmmkit.api.sample import Image
from lmmkit.data.sources.bad_records import BadRecord
from lmmkit.data.sources.image_paths import ImageRoot, describe, is_plain, path_fault
from lmmkit.data.sources.index_cache import BAD_KEPT, Index, open_index
from lmmkit.data.sources.json_records import RawRecord, read_rows, row_of
from lmmkit.data.sources.json_stream import Window
from lmmkit.data.sources.record_parser import RecordParser, RecordSize, measure_record, measured_record
from lmmkit.errors import UserError
from lmmkit.errors.data import CHANGED, RECORDS_FILE

ROW = np.dtype(
    [
        ("offset", "<u8"),
        ("length", "<u8"),
        ("line", "<u8"),
        ("row", "<u8"),
        ("words", "<i4"),
        ("again", "<u1"),
    ]
)
PICTURE = np.dtype([("item", "<u8"), ("start", "<u8"), ("folder", "<u4")])

Told = Callable[[BadRecord], None]
Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class JsonRecords:
    """Reads the good records of the file `path`, by number. Their images are below `root`."""

    path: Path
    root: ImageRoot
    index: Index
    _kept: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __reduce__(self) -> tuple[object, ...]:
        return _opened, (self.path, self.root, self.index)

    def __len__(self) -> int:
        return len(self.index.arrays["rows"])

    def row(self, i: int) -> RawRecord:
        """Reads good record i from the file. Raises `UserError` if the file changed since it was indexed."""
        at = self.index.arrays["rows"][i]
        try:
            if "fd" not in self._kept:
                self._kept["fd"] = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            stat = os.fstat(self._kept["fd"])
            data = os.pread(self._kept["fd"], int(at["length"]), int(at["offset"]))
        except OSError as error:
            got = error.strerror or str(error)
            problem = RECORDS_FILE.at(str(self.path), got=got, expected="a file that can be read")
            raise UserError(problem) from error
        if [stat.st_size, stat.st_mtime_ns] != self.index.meta["stat"]:
            raise UserError(CHANGED.at(str(self.path), got="another size or time of change"))
        return row_of(data, int(at["row"]), int(at["line"]))

    def key(self, i: int, own: str) -> str:
        """Returns the key of record i in its source: its id, plus the record number if the id is a repeat."""
        at = self.index.arrays["rows"][i]
        return f"{own or at['row']}" + f"#{at['row']}" * int(at["again"])

    def images(self, i: int, paths: tuple[str, ...]) -> tuple[Image, ...]:
        """Returns the images of record i."""
        return tuple(Image(os.path.join(self.root.path, path)) for path in paths)

    def place(self, i: int) -> tuple[str, int, int]:
        """Returns (file, line, record number in the file) of record i."""
        at = self.index.arrays["rows"][i]
        return str(self.path), int(at["line"]), int(at["row"])

    def pictures(self) -> Iterator[tuple[int, Image]]:
        """Yields each image once, with the number of its first record."""
        for i, path in self._paths():
            yield i, Image(os.path.join(self.root.path, path))

    def missing(self) -> list[tuple[int, str]]:
        """Returns (record, description) of each image file that is missing or not a regular file."""
        found = []
        for folder, listing in self._listings():
            for i, path in self._paths(folder):
                name = path.rpartition("/")[2]
                if name in listing.files or (name in listing.links and os.path.isfile(self._full(path))):
                    continue
                found.append(
                    (i, f"no {'regular ' * os.path.lexists(self._full(path))}file {self._full(path)}")
                )
        return sorted(found)

    def paths_outside(self) -> list[tuple[str, str]]:
        """Returns (absolute path, description) of each image that a link takes out of the root."""
        found = []
        for folder, listing in self._listings():
            for i, path in self._paths(folder) if listing.links or not listing.inside else ():
                name = path.rpartition("/")[2]
                if not listing.inside or (name in listing.links and self.root.leads_out(path)):
                    got = describe(path, "which a link leads out of the folder")
                    found.append((i, self._full(path), got))
        return [(path, got) for _, path, got in sorted(found)]

    def identity(self) -> dict[str, object]:
        """Returns what distinguishes this data from other data: file content, image names and sizes."""
        crc = total = count = 0
        for _, image in self.pictures():
            try:
                size = os.stat(image.path).st_size
            except OSError:
                size = -1  # a source may skip missing images
            crc = zlib.crc32(f"{image.path.removeprefix(self.root.path)} {size}\n".encode(), crc)
            total, count = total + max(size, 0), count + 1
        return {
            "records": f"{self.path.stat().st_size} bytes, crc32 {_file_crc(self.path):08x}",
            "pictures": f"{count} files, {total} bytes, crc32 {crc:08x}",
        }

    def _full(self, path: str) -> str:
        return os.path.join(self.root.path, path)

    def _listings(self):
        for number, folder in enumerate(self.index.meta["folders"]):
            yield number, self.root.list(folder)

    def _paths(self, folder: int | None = None) -> Iterator[tuple[int, str]]:
        """Yields (first record, relative path) of each image in record order, of all folders or of one."""
        pictures, names = self.index.arrays["pictures"], self.index.arrays["names"]
        ends = np.append(pictures["start"][1:], len(names)).astype(np.uint64)
        chosen = range(len(pictures)) if folder is None else np.flatnonzero(pictures["folder"] == folder)
        for j in chosen:
            path = names[int(pictures["start"][j]) : int(ends[j])].tobytes().decode()
            if is_plain(path) or path_fault(path) is None:
                yield int(pictures["item"][j]), path


def _opened(path: Path, root: ImageRoot, index: Index) -> JsonRecords:
    return JsonRecords(path=path, root=root, index=index)


def open_json(
    path: Path, images: Path, template: str, *, rebuild: bool = False,
    on_bad_record: Told | None = None, progress: Progress | None = None,
) -> JsonRecords:  # fmt: skip
    """Returns the file with its index. If there is no index yet, one pass over the file makes it.

    `rebuild` forces this pass. It calls `on_bad_record` for every problem of every bad record, and
    `progress` with the bytes read. Raises `UserError` for a bad records file or image folder.
    """
    root = ImageRoot.open(images)
    with Window(path):  # raises a clear error if it cannot be read
        pass
    key = f"json {os.path.realpath(path)} {'plain' if template == 'plain' else 'talk'} {path.suffix}"
    build = lambda: _Pass(path, template, on_bad_record, progress).index()  # noqa: E731
    return JsonRecords(path=path, root=root, index=open_index(key, [path], build, rebuild=rebuild))


class _Pass:
    """Makes one pass over a file: parses and checks every record, and measures the good ones."""

    def __init__(
        self, path: Path, template: str, on_bad_record: Told | None, progress: Progress | None
    ) -> None:
        self.path, self.template = path, template
        self.on_bad_record, self.progress = on_bad_record or (lambda bad: None), progress
        self.rows: list[array.array] = [array.array(code) for code in "QQQQiB"]
        self.pictures: dict[str, None] = {}
        self.first, self.names = array.array("Q"), bytearray()
        self.starts, self.folders, self.folder = array.array("Q"), array.array("I"), dict[str, int]()
        self.keys: set[str] = set()
        self.bad: list[BadRecord] = []
        self.counts: Counter[str] = Counter(rows=0, bad_records=0, problems=0, dropped_turns=0)

    def index(self) -> Index:
        """Returns everything that the pass found."""
        stat = os.stat(self.path)
        with Window(self.path, self.progress) as window:
            for row in read_rows(window):
                self.counts["rows"] += 1
                found = measure_record(row, self.template) or self.closer(row)
                if found is not None:
                    self.keep(row, found)
        meta = {
            **self.counts,
            "stat": [stat.st_size, stat.st_mtime_ns],
            "crc32": window.crc,
            "folders": list(self.folder),
            "pictures": len(self.first),
        }
        rows = np.empty(len(self.rows[0]), ROW)
        for name, column in zip(ROW.names or (), self.rows, strict=True):
            rows[name] = np.frombuffer(column, column.typecode)
        pictures = np.empty(len(self.first), PICTURE)
        for name, column in zip(PICTURE.names or (), (self.first, self.starts, self.folders), strict=True):
            pictures[name] = np.frombuffer(column, column.typecode)
        names = np.frombuffer(bytes(self.names), np.uint8)
        return Index(meta, {"rows": rows, "pictures": pictures, "names": names}, tuple(self.bad))

    def closer(self, row: RawRecord) -> RecordSize | None:
        """Parses a record that `measure_record` did not accept. Reports all its problems."""
        reader = RecordParser(template=self.template)
        record = reader.read(row)
        if record is not None:
            return measured_record(record, row.value, reader.dropped)
        self.counts["bad_records"] += 1
        self.counts["problems"] += len(reader.problems)
        for key, problem in reader.problems:
            bad = BadRecord.of(problem, (str(self.path), row.line, row.index), reader.said, key)
            self.on_bad_record(bad)
            if len(self.bad) < BAD_KEPT:
                self.bad.append(bad)
        return None

    def keep(self, row: RawRecord, found: RecordSize) -> None:
        """Adds a good record to the index."""
        again, key = 0, found.key or str(row.index)
        while key in self.keys:
            again, key = again + 1, f"{key}#{row.index}"
        self.keys.add(key)
        for path in found.images:
            if path not in self.pictures:
                self.picture(path, len(self.rows[0]))
        words = found.words if found.images else -found.words
        values = (row.offset, row.length, row.line, row.index, words, min(again, 255))
        for column, value in zip(self.rows, values, strict=True):
            column.append(value)
        self.counts["dropped_turns"] += found.dropped

    def picture(self, path: str, item: int) -> None:
        """Adds an image path that appears for the first time."""
        self.pictures[path] = None
        self.first.append(item)
        self.starts.append(len(self.names))
        self.names += path.encode()
        folder = path.rpartition("/")[0]
        self.folders.append(self.folder.setdefault(folder, len(self.folder)))


def _file_crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc
