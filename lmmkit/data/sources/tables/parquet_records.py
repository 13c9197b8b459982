"""Reads parquet and Arrow files as a source of kind `messages`, through an index. A record is read when it is needed.

Images are cells of the files, as `datasets` writes them ({"bytes": ..., "path": ...}), or files that cells name. The
pass over the files reads texts and the paths of images, and the bytes of images only where a group does not say
which of them are there.
"""

from __future__ import annotations

import array
import heapq
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmmkit.api.sample import Image
from lmmkit.data.image_files.data_addresses import MARK
from lmmkit.data.sources.image_paths import ImageRoot
from lmmkit.data.sources.index_cache import Index, fingerprint
from lmmkit.data.sources.indexed_records import IndexBuilder, Indexing, OpenFiles
from lmmkit.data.sources.json_records import RawRecord
from lmmkit.data.sources.llava_json import ImageNames, JsonRecords
from lmmkit.data.sources.tables.table_names import table_files
from lmmkit.data.sources.tables.table_schema import EMBEDDED, Reading, reading_of
from lmmkit.data.tables.table_file import IMAGES, PIECE, TableFile, open_table, present
from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.errors.data import RECORDS_CHANGED, TABLE_FILE, TABLE_TEXT, TABLE_VALUE

LARGE = 50 * 2**20  # bytes of a group: to find an image in a larger one takes 20 ms and more
SLOW = "in a row group of more than 50 MiB, which is read up to the record; `row_group_size=100` writes smaller ones"


@dataclass(frozen=True, kw_only=True, eq=False)
class TableRecords(JsonRecords):
    """Reads the good records of tables, by number. `how`: which columns are read."""

    how: Reading

    def record(self, i: int) -> RawRecord:
        """Reads good record i, in LLaVA's form. Raises `UserError` if its file changed since it was indexed."""
        at = self.index.arrays["records"][i]
        file, row = int(at["file"]), int(at["offset"])
        path = self.files.paths[file]
        with suppress(OSError, ValueError):
            stat = path.stat()
            if [stat.st_size, stat.st_mtime_ns] != self.index.meta["stat"][file]:
                raise UserError(RECORDS_CHANGED.at(str(path), got="another size or time of change"))
        cells = open_table(str(path)).read(row, self.how.texts)
        embedded = self._cells(i)
        images = _names(self.how.cell(cells), frozenset(embedded), max(embedded, default=-1) + 1)
        return self.how.record(RawRecord(int(at["number"]), int(at["line"])), cells, images)

    @property
    def contains_images(self) -> bool:
        """Returns whether cells contain images."""
        return len(self.index.arrays["cell_records"]) > 0 or super().contains_images

    def names(self, i: int, paths: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the paths of the images; of images of a cell those that it has beside their bytes."""
        at, column = self.index.arrays["records"][i], self.how.parts.get("images", "")
        listed: list[object] = []
        if self.how.image == "struct" and "path" in self.how.fields and any(map(EMBEDDED.fullmatch, paths)):
            path = str(self.files.paths[int(at["file"])])
            listed = _listed(open_table(path).read(int(at["offset"]), [f"{column}.path"])[column])
        inside = dict(enumerate(each.get("path") if isinstance(each, dict) else None for each in listed))
        found = (inside.get(int(m[1])) if (m := EMBEDDED.fullmatch(path)) else path for path in paths)
        return super().names(i, tuple(path if isinstance(path, str) else "" for path in found))

    def all_images(self) -> Iterator[tuple[int, Image]]:
        """Yields each image of a cell, and each file once, with its first record."""
        cells = zip(self.index.arrays["cell_records"], self.index.arrays["cell_numbers"], strict=True)
        inside = ((int(i), self._image(int(i), f"{number}.bytes", {})) for i, number in cells)
        yield from heapq.merge(inside, super().all_images(), key=lambda found: found[0])

    def identity(self) -> dict[str, object]:
        """Returns what distinguishes this data from other data: the texts of the records, names and sizes of image
        files, and of the files of records their sizes and a checksum of blocks."""
        marks = [[size, crc] for size, _, crc in fingerprint(self.files.paths)]
        cells = self.index.arrays["cell_records"]
        crc = zlib.crc32(repr(marks).encode(), zlib.crc32(cells.tobytes()))
        records = f"{len(marks)} files, {sum(size for size, _ in marks)} bytes, crc32 {self.index.meta['crc32']:08x}"
        return {
            "records": records,
            "images": f"{len(cells)} cells, crc32 {crc:08x}; {self.names_and_sizes()}",
        }

    def _places(self, i: int) -> Mapping[str, tuple[int, int]]:
        return {}

    def _image(self, i: int, name: str, places: Mapping[str, tuple[int, int]]) -> Image:
        at = self.index.arrays["records"][i]
        file, row = str(self.files.paths[int(at["file"])]), int(at["offset"])
        if found := EMBEDDED.fullmatch(name):
            return Image(file, cell=(row, self.how.parts["images"], int(found[1])))
        if mark := MARK.fullmatch(name):
            return Image(file, cell=(row, self.how.parts[mark[1]], 0), address=mark[2])
        return super()._image(i, name, places)

    def _cells(self, i: int) -> list[int]:
        """Returns the numbers of the images of record i that its cell contains."""
        begin, end = np.searchsorted(self.index.arrays["cell_records"], np.array([i, i + 1], np.uint64))
        return [int(each) for each in self.index.arrays["cell_numbers"][begin:end]]


def open_tables(path: Path, images: Path | None, indexing: Indexing) -> TableRecords:
    """Returns the files with their index. `images`: the folder of images that cells name.

    Raises `UserError` for a damaged file, or for columns that cannot be read, each with its file.
    """
    root = ImageRoot.open(images) if images is not None else ImageRoot.none()
    files = table_files(path)
    how = reading_of(files, indexing.columns or {}, folder=images is not None)
    index = indexing.open(
        f"tables {images is not None}", path, files, lambda: _Pass(files, how, indexing).index()
    )
    return TableRecords(
        path=path, files=OpenFiles(files), index=index, root=root, columns=indexing.columns, how=how
    )


def _listed(cell: object) -> list[object]:
    return cell if isinstance(cell, list) else [] if cell is None else [cell]


def _names(cell: object, embedded: frozenset[int], count: int) -> list[object]:
    """Returns the names of a record's images: of those that its cell contains their numbers, of others their paths,
    which become different from such a number.

    `cell`: the column of images without their bytes; `count`: how many images there are at least.
    """
    paths = [each.get("path") if isinstance(each, dict) else each for each in _listed(cell)]
    paths = [f"./{path}" if isinstance(path, str) and EMBEDDED.fullmatch(path) else path for path in paths]
    paths += [None] * (count - len(paths))
    return [f"{k}.bytes" if k in embedded else path for k, path in enumerate(paths)]


@dataclass
class _Pass:
    """Makes one pass over the files."""

    files: Sequence[Path]
    how: Reading
    indexing: Indexing
    crc: int = 0
    cells: tuple[array.array, array.array] = field(
        default_factory=lambda: (array.array("Q"), array.array("I"))
    )

    def index(self) -> Index:
        """Returns everything that the pass finds. Raises `UserError` with the problems of all files."""
        builder, names, done = IndexBuilder(self.files, self.indexing), ImageNames(), 0
        problems: list[Problem] = []
        for number, path in enumerate(self.files):
            try:
                self.file(number, open_table(str(path)), builder, names, done)
            except UserError as error:
                problems += error.problems
            done += path.stat().st_size
        raise_all(problems)
        meta = names.meta() | {"images": len(names.known) + len(self.cells[0]), "crc32": self.crc}
        cells = {
            "cell_records": np.frombuffer(self.cells[0], np.uint64),
            "cell_numbers": np.frombuffer(self.cells[1], np.uint32),
        }
        return builder.index(meta, {**names.arrays(), **cells})

    def file(
        self, number: int, table: TableFile, builder: IndexBuilder, names: ImageNames, done: int
    ) -> None:
        """Adds the records of one file."""
        row, size = 0, self.files[number].stat().st_size
        columns = self.how.texts or list(table.types)[:1]
        for group in range(len(table.sizes)):
            inside, before = self.inside(table, group), len(builder)
            rows = (cells for piece in table.pieces(group, columns, PIECE) for cells in _rows(piece))
            for cells, given in zip(rows, inside, strict=False):
                self.record(number, row, cells, given, builder, names)
                row += 1
            if row != table.ends[group]:
                got = f"columns that end after {row - table.ends[group] + table.sizes[group]} records of the group"
                raise UserError(TABLE_FILE.at(table.place(group), got=got, expected="a complete file"))
            if len(builder) > before and table.bytes_read(group, self.how.all) > LARGE:
                builder.notes[SLOW] += len(builder) - before
            self.indexing.progress(done + size * row // max(1, len(table)))

    def record(
        self, number: int, row: int, cells: Mapping[str, Any] | Problem, inside: tuple[bool, ...] | None,
        builder: IndexBuilder, names: ImageNames,
    ) -> None:  # fmt: skip
        """Adds one record. `inside`: which of its images its cell contains; None: all of them."""
        raw = RawRecord(builder.counts["records"], row + 1, offset=row)
        if isinstance(cells, Problem):
            builder.refuse(raw, [("", cells)], number, "")
            return
        if inside is None:
            cell = _listed(self.how.cell(cells))
            embedded = frozenset(k for k, each in enumerate(cell) if each is not None)
        else:
            embedded = frozenset(k for k, given in enumerate(inside) if given)
        images = _names(self.how.cell(cells), embedded, len(inside or ()))
        found = self.how.record(raw, cells, images)
        if (measures := builder.add(found, number)) is None:
            return
        self.crc = zlib.crc32(repr(found.value).encode(), self.crc)
        good = len(builder) - 1
        names.add(tuple(path for path in measures.images if not EMBEDDED.fullmatch(path)), good)
        for k in sorted(embedded):
            self.cells[0].append(good)
            self.cells[1].append(k)

    def inside(self, table: TableFile, group: int) -> Iterator[tuple[bool, ...] | None]:
        """Yields for each record of a group which of its images its cell contains; None: all of them."""
        column = self.how.parts.get("images")
        size = table.sizes[group]
        if column is None or self.how.image == "string":
            yield from [()] * size
            return
        if self.how.image == "struct" and (counted := table.nulls(group, f"{column}.bytes")) is not None:
            absent = 0
            for piece in table.pieces(group, [f"{column}.path"], PIECE):
                for cell in piece.column(0).to_pylist():
                    absent += 1 if cell is None or cell == [] else sum(each is None for each in _listed(cell))
            if counted[0] == absent:
                yield from [None] * size
                return
            if counted[0] == counted[1]:
                yield from [()] * size
                return
        for piece in table.pieces(group, [column], IMAGES):
            yield from present(piece.column(0))


def _rows(piece: Any) -> Iterator[Mapping[str, Any] | Problem]:
    """Yields the records of a batch; the problem of one that cannot be decoded."""
    try:
        found = piece.to_pylist()
    except MemoryError:
        raise
    except Exception:  # pyarrow raises errors of many types for texts, dates and time zones
        found = (_row(piece.slice(k, 1)) for k in range(piece.num_rows))
    yield from found


def _row(piece: Any) -> Mapping[str, Any] | Problem:
    """Returns the record of a batch of one; its problem if it cannot be decoded."""
    try:
        return piece.to_pylist()[0]
    except MemoryError:
        raise
    except UnicodeDecodeError as error:
        return TABLE_TEXT.at("", got=f"byte 0x{error.object[error.start]:02x}, which is no UTF-8")
    except Exception as error:
        return TABLE_VALUE.at("", got=(str(error).splitlines() or [type(error).__name__])[0][:200])
