"""Reads single records of parquet and Arrow files, and images that their cells contain.

A record of a parquet file is found in its row group, whose columns are read in pieces, so that memory does not
depend on the size of the group. An Arrow file is mapped into memory. pyarrow is imported when the first file is opened.
"""

from __future__ import annotations

import functools
import os
import stat
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate
from typing import Any

from lmmkit.data.tables.arrow_batches import read_batches
from lmmkit.errors import LmmkitError, MachineError, UserError
from lmmkit.errors.data import NO_PYARROW, RECORDS_FILE, TABLE_COLUMNS, TABLE_FILE

PIECE = 32  # records that are read at a time
IMAGES = 4  # the same for columns of images
_BUFFER = 2**17
_OPEN = 16  # files that a process keeps open


class _Pieces:
    """Reads record batches one after the other. `begin`: the number of the first record of `piece`; None at the end."""

    def __init__(self, pieces: Iterator[Any]) -> None:
        self.pieces, self.begin = pieces, 0
        self.piece: Any = next(pieces, None)

    def move(self) -> None:
        """Reads the next batch."""
        following = next(self.pieces, None)
        self.begin, self.piece = self.begin + self.piece.num_rows, following


_kept: ContextVar[dict[tuple, _Pieces] | None] = ContextVar(
    "kept", default=None
)  # by file, group and columns


@contextmanager
def in_order() -> Iterator[None]:
    """Lets each read in the block go on where the last one ended, so that reading a file in its order is fast."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


class TableFile(ABC):
    """Reads an open file. `types`: the type of each column; `sizes`: the number of records in each group.

    Raises `UserError` with the file and the records if it is damaged.
    """

    path: str
    types: Mapping[str, Any]
    sizes: Sequence[int]

    @functools.cached_property
    def ends(self) -> list[int]:
        """Returns where each group ends, in records of the file."""
        return list(accumulate(self.sizes))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @abstractmethod
    def pieces(self, group: int, columns: Sequence[str], size: int) -> Iterator[Any]:
        """Yields record batches of a group, each with at most `size` records.

        A column of a struct is named `column.field`; then the struct has this field only.
        """

    @abstractmethod
    def nulls(self, group: int, leaf: str) -> tuple[int, int] | None:
        """Returns (values that are null, values) of a leaf column in a group; None if that is not known."""

    def bytes_read(self, group: int, columns: Sequence[str]) -> int:
        """Returns the bytes that are read, at most, to find a record of a group in these columns."""
        return 0

    def read(self, record: int, columns: Sequence[str], size: int = PIECE) -> dict[str, Any]:
        """Returns the cells of one record by column. `size`: records that are decoded at once.

        Raises `UserError` if the file has no such record, or cannot be read.
        """
        group = bisect_right(self.ends, record)
        if group == len(self.ends):
            got = f"no record {record + 1}: it has {len(self)}"
            raise UserError(TABLE_FILE.at(self.path, got=got, expected="the file as it was indexed"))
        at = record - (self.ends[group] - self.sizes[group])
        reader = self.reader(group, columns, size, at)
        while reader.piece is not None:
            if at < reader.begin + reader.piece.num_rows:
                with reading(f"{self.path}:{record + 1}"):
                    return reader.piece.slice(at - reader.begin, 1).to_pylist()[0]
            reader.move()
        got = f"a group of records that ends before record {record}"
        raise UserError(TABLE_FILE.at(self.path, got=got, expected="a complete file"))

    def reader(self, group: int, columns: Sequence[str], size: int, at: int) -> _Pieces:
        """Returns a reader of a group that has not passed record `at`: within `in_order` the one that read before."""
        kept = _kept.get()
        if kept is None:
            return _Pieces(self.pieces(group, columns, size))
        key = (self.path, group, *columns)
        if key not in kept or at < kept[key].begin:
            for other in [each for each in kept if each[:2] != key[:2]]:
                del kept[other]
            kept[key] = _Pieces(self.pieces(group, columns, size))
        return kept[key]

    def place(self, group: int) -> str:
        """Returns the place of a group as messages name it."""
        end = self.ends[group]
        return f"{self.path}:{end - self.sizes[group] + 1}-{end}"


class _Parquet(TableFile):
    """Reads a parquet file; its groups are row groups."""

    def __init__(self, path: str) -> None:
        import pyarrow.parquet as parquet

        self.path = path
        self.file = parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, memory_map=False)
        self.types = _types(path, self.file.schema_arrow)
        meta = self.file.metadata
        self.sizes = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
        leaves = [self.file.schema.column(i).path for i in range(len(self.file.schema))]
        self.leaves = {leaf: i for i, leaf in enumerate(leaves)}

    def pieces(self, group: int, columns: Sequence[str], size: int) -> Iterator[Any]:
        leaves = self.leaves_of(columns)
        with reading(self.place(group)):
            yield from self.file.iter_batches(size, row_groups=[group], columns=leaves, use_threads=False)

    def leaves_of(self, columns: Sequence[str]) -> list[str]:
        """Returns the leaves of the file that are read for these columns."""
        return [leaf for leaf in self.leaves for column in columns if self.is_of(leaf, column)]

    def bytes_read(self, group: int, columns: Sequence[str]) -> int:
        meta = self.file.metadata.row_group(group)
        leaves = dict.fromkeys(self.leaves_of(columns))
        return sum(meta.column(self.leaves[leaf]).total_uncompressed_size for leaf in leaves)

    def nulls(self, group: int, leaf: str) -> tuple[int, int] | None:
        found = next((i for path, i in self.leaves.items() if self.is_of(path, leaf)), None)
        if found is None:
            return None
        with reading(self.place(group)):
            column = self.file.metadata.row_group(group).column(found)
            statistics = column.statistics
            if statistics is None or not statistics.has_null_count:
                return None
            return statistics.null_count, column.num_values

    @staticmethod
    def is_of(leaf: str, column: str) -> bool:
        """Returns whether a leaf of the file, as `images.list.element.path`, is of a column, or of `column.field`."""
        if leaf == column or leaf.startswith(f"{column}."):
            return True
        name, _, inner = column.rpartition(".")
        return bool(name) and leaf.startswith(f"{name}.") and leaf.endswith(f".{inner}")


class _Arrow(TableFile):
    """Reads an Arrow file or stream; its groups are record batches."""

    def __init__(self, path: str) -> None:
        self.path = path
        schema, self.batches = read_batches(path)
        self.types = _types(path, schema)
        self.sizes = [batch.num_rows for batch in self.batches]

    def pieces(self, group: int, columns: Sequence[str], size: int) -> Iterator[Any]:
        import pyarrow as arrow

        with reading(self.place(group)):
            batch = self.batches[group]
            for at in range(0, batch.num_rows, size):
                part = batch.slice(at, size)
                found = dict(self.column(part, column) for column in columns)
                yield arrow.RecordBatch.from_pydict(found)

    def nulls(self, group: int, leaf: str) -> tuple[int, int] | None:
        return None

    def column(self, part: Any, column: str) -> tuple[str, Any]:
        """Returns the name and the cells of a column, or of `column.field` without its other fields."""
        import pyarrow as arrow

        name, inner = (column, "") if column in self.types else column.rpartition(".")[::2]
        cells = part.column(name)
        cells.validate(full=True)
        if not inner:
            return name, cells
        in_list = not arrow.types.is_struct(cells.type)
        struct = cells.type.value_type if in_list else cells.type
        only = arrow.struct([struct.field(inner)])
        return name, cells.cast(arrow.list_(only) if in_list else only)


def _types(path: str, schema: Any) -> dict[str, Any]:
    """Returns the type of each column. Raises `UserError` for two columns of one name."""
    twice = [name for name in dict.fromkeys(schema.names) if schema.names.count(name) > 1]
    if twice:
        got = f"several columns `{twice[0][:80]}`"
        raise UserError(TABLE_COLUMNS.at(path, got=got, expected="one column of each name"))
    return dict(zip(schema.names, schema.types, strict=True))


def present(images: Any) -> list[tuple[bool, ...]]:
    """Returns for each cell of a column of images which of its images have bytes."""
    import pyarrow as arrow
    import pyarrow.compute as compute

    in_list = arrow.types.is_list(images.type) or arrow.types.is_large_list(images.type)
    flat = images.flatten() if in_list else images
    data = compute.struct_field(flat, "bytes") if arrow.types.is_struct(flat.type) else flat  # pyright: ignore[reportAttributeAccessIssue]
    valid = data.is_valid().to_pylist()
    if not in_list:
        return [
            (each,) if cell else () for each, cell in zip(valid, images.is_valid().to_pylist(), strict=True)
        ]
    counts = [n or 0 for n in compute.list_value_length(images).to_pylist()]  # pyright: ignore[reportAttributeAccessIssue]
    return [tuple(valid[end - n : end]) for n, end in zip(counts, accumulate(counts), strict=True)]


def open_table(path: str) -> TableFile:
    """Returns an open file; the last 16 stay open. A file that was replaced is opened again.

    Raises `UserError` for a file that cannot be read, and `MachineError` if pyarrow is missing.
    """
    try:
        found = os.stat(path)
        regular, got = stat.S_ISREG(found.st_mode), "no regular file"
    except (OSError, ValueError) as error:
        regular, got = False, getattr(error, "strerror", None) or str(error)
    if not regular:
        raise UserError(RECORDS_FILE.at(path, got=got, expected="a parquet or Arrow file"))
    return _open(path, found.st_size, found.st_mtime_ns)


def read_cell(path: str, record: int, column: str, number: int) -> bytes:
    """Returns the bytes of image `number` in a cell. Raises `UserError` if there are none."""
    cell = open_table(path).read(record, [column], IMAGES)[column]
    images = cell if isinstance(cell, list) else [cell]
    found = images[number] if number < len(images) else None
    data = found.get("bytes") if isinstance(found, dict) else found
    if not isinstance(data, bytes):
        got = f"no bytes of image {number} in column `{column}`"
        raise UserError(TABLE_FILE.at(f"{path}:{record + 1}", got=got, expected="the file as it was indexed"))
    return data


@contextmanager
def reading(where: str, expected: str = "a complete file") -> Iterator[None]:
    """Turns every error inside into a `UserError` about a damaged file."""
    try:
        yield
    except (LmmkitError, GeneratorExit, MemoryError):
        raise
    except Exception as error:  # pyarrow raises errors of many types for broken files
        got = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(TABLE_FILE.at(where, got=got, expected=expected)) from error


def require_pyarrow(where: str) -> None:
    """Raises `MachineError` if pyarrow is missing. `where`: what needs it."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MachineError(NO_PYARROW.at(where, got="no package pyarrow")) from error


@functools.lru_cache(_OPEN)
def _open(path: str, size: int, changed: int) -> TableFile:
    require_pyarrow("kind: messages")
    if path.endswith(".arrow"):
        with reading(path, "a complete Arrow file"):
            return _Arrow(path)
    with reading(path, "a complete parquet file; names of other files end in .arrow, .json or .jsonl"):
        return _Parquet(path)
