"""A records file in LLaVA's format with its index: rows are parsed when they are asked for."""

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
    """The good rows of the file `path`, by number; pictures lie below `root`."""

    path: Path
    root: ImageRoot
    index: Index
    _kept: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __reduce__(self) -> tuple[object, ...]:
        return _opened, (self.path, self.root, self.index)

    def __len__(self) -> int:
        return len(self.index.arrays["rows"])

    def row(self, i: int) -> RawRecord:
        """Good row i as the file has it now. Raises `UserError` if the file is not what it was."""
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
        """What names row i in its source: its own id, with the row's number where that came before."""
        at = self.index.arrays["rows"][i]
        return f"{own or at['row']}" + f"#{at['row']}" * int(at["again"])

    def images(self, i: int, paths: tuple[str, ...]) -> tuple[Image, ...]:
        """The pictures of row i."""
        return tuple(Image(os.path.join(self.root.path, path)) for path in paths)

    def place(self, i: int) -> tuple[str, int, int]:
        """(file, line, row of the file) of row i."""
        at = self.index.arrays["rows"][i]
        return str(self.path), int(at["line"]), int(at["row"])

    def pictures(self) -> Iterator[tuple[int, Image]]:
        """Each picture once, with its first row."""
        for i, path in self._paths():
            yield i, Image(os.path.join(self.root.path, path))

    def missing(self) -> list[tuple[int, str]]:
        """(row, what is wrong) of each picture file that is not there, or is no regular file."""
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
        """What tells this data from other: bytes of the file, names and sizes of its pictures."""
        crc = total = count = 0
        for _, image in self.pictures():
            try:
                size = os.stat(image.path).st_size
            except OSError:
                size = -1  # a source may do without some
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
        """(first row, relative path) of each picture, in the order of rows; of one folder."""
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
    """The file with its index, which a pass over the whole file makes where there is none.

    `told` hears of everything wrong in every bad row, and `progress` of bytes read, if there is a
    pass (`anew`: there is). Raises `UserError` for what is no file of rows, or no folder.
    """
    root = ImageRoot.open(images)
    with Window(path):  # says in words what is no file
        pass
    key = f"json {os.path.realpath(path)} {'plain' if template == 'plain' else 'talk'} {path.suffix}"
    build = lambda: _Pass(path, template, on_bad_record, progress).index()  # noqa: E731
    return JsonRecords(path=path, root=root, index=open_index(key, [path], build, rebuild=rebuild))


class _Pass:
    """One pass over a file: every row parsed and checked, the good ones measured."""

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
        """Everything the pass found."""
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
        """Reads a record that `measure` does not pass. Reports all its problems."""
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
        """A good row goes into the index."""
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
        """A picture seen for the first time."""
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
