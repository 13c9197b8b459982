"""Writes records as a parquet file of kind `messages`, in small row groups, with their images inside or as paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmmkit.data.convert.rows import ROLES, Row, unfit
from lmmkit.data.convert.table_columns import TableColumns
from lmmkit.data.image_files.image_file import read_bytes

RECORDS = 100  # of one row group: a record is found in its group by reading up to it
BYTES = 16 * 2**20


class TableWriter:
    """Writes `records.parquet` into a folder. `copy`: with the bytes of the images."""

    name = "records.parquet"

    def __init__(self, folder: Path, columns: TableColumns, copy: bool) -> None:
        import pyarrow as arrow
        from pyarrow import parquet

        self.columns, self.copy = columns, copy
        text = arrow.string()
        turn = arrow.struct([("role", text), ("content", text), *columns.of_turns.items()])
        image = arrow.struct([("bytes", arrow.binary()), ("path", text)]) if copy else text
        fields = [("id", text), ("messages", arrow.list_(turn))]
        fields += [("system", text)] * columns.system + [("images", arrow.list_(image))] * columns.images
        self.schema: Any = arrow.schema([*fields, *columns.of_records.items()])
        self._sink = parquet.ParquetWriter(folder / self.name, self.schema)
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, row: Row, lost: list[str]) -> int:
        """Writes a record. Returns the number of images that were copied."""
        images: list[Any] = list(row.names)
        if self.copy:
            data = [read_bytes(image)[0] for image in row.images]
            images = [
                {"bytes": each, "path": name or None} for each, name in zip(data, row.names, strict=True)
            ]
            self._bytes += sum(map(len, data))
        others = self._kept(row.others, self.columns.of_records, self.columns.records_lost, "", lost)
        turns = [
            {"role": ROLES[turn.who], "content": turn.text,
             **self._kept(turn.others, self.columns.of_turns, self.columns.turns_lost, " of a turn", lost)}
            for turn in row.turns
        ]  # fmt: skip
        value = {"id": str(row.id), "messages": turns, "system": row.system, "images": images or None}
        self._rows.append(value | others)
        if len(self._rows) >= RECORDS or self._bytes >= BYTES:
            self._flush()
        return len(images) if self.copy else 0

    def close(self) -> None:
        """Ends the file."""
        if self._rows:
            self._flush()
        self._sink.close()

    def _kept(self, others: Any, types: Any, reasons: Any, of: str, lost: list[str]) -> dict[str, Any]:
        """Returns the other keys that have a column."""
        found: dict[str, Any] = {}
        for key, value in others.items():
            reason = unfit(value) if key in types else reasons[key]
            if reason is None:
                found[key] = value
            else:
                lost.append(f"`{key[:40]}`{of}: {reason}")
        return found

    def _flush(self) -> None:
        import pyarrow as arrow

        self._sink.write_table(arrow.Table.from_pylist(self._rows, self.schema))
        self._rows, self._bytes = [], 0
