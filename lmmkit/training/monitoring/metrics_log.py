"""metrics.jsonl and other logs of one JSON object for each step, which survive a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from lmmkit.errors import MachineError, Problem, UserError
from lmmkit.errors.training import LOG_CANNOT_WRITE, NO_STEP
from lmmkit.runs.files import io_point, plain, read_jsonl, write_text_atomic


class MetricsLog:
    """Appends one JSON object for each step; `write` flushes it to the operating system.

    Opening the file removes an incomplete last line, so that the next line is not appended to it. Raises
    `UserError` if another line is damaged, `MachineError` if the file cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        if path.is_file() and not _ends_in_newline(path):
            self._rewrite(read_jsonl(path))
        self._file = self._open()

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends `record`; NaN and infinities become null. Raises `MachineError` if the file cannot be written."""
        try:
            io_point(f"append to {self.path.name}")
            self._file.write(_line(record))
            self._file.flush()
        except OSError as error:
            raise MachineError(_unwritable(self.path, error)) from error

    def truncate(self, step: int) -> None:
        """Removes the records after `step`, because those steps will run again."""
        self._file.close()
        self._rewrite([record for record in self._read() if record["step"] <= step])
        self._file = self._open()

    def close(self) -> None:
        """Closes the file; every record is already written."""
        self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self) -> list[dict[str, Any]]:
        records = read_jsonl(self.path)
        for number, record in enumerate(records, 1):
            if type(record.get("step")) is not int:
                raise UserError(NO_STEP.at(f"{self.path}:{number}", got="a line without its step"))
        return records

    def _rewrite(self, records: list[dict[str, Any]]) -> None:
        write_text_atomic(self.path, "".join(map(_line, records)))

    def _open(self) -> TextIO:
        try:
            return self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise MachineError(_unwritable(self.path, error)) from error


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(plain(record), allow_nan=False) + "\n"


def _ends_in_newline(path: Path) -> bool:
    """Returns whether a file is empty or ends in a newline."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _unwritable(path: Path, error: OSError) -> Problem:
    return LOG_CANNOT_WRITE.at(str(path), got=error.strerror or str(error))
