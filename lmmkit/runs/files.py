"""Reads small JSON files, with problems for bad ones; writes JSON and text completely or not at all."""

from __future__ import annotations

import json
import math
import numbers
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmmkit.errors import MachineError, Problem, UserError
from lmmkit.errors.training import RUN_CANNOT_WRITE, RUN_DAMAGED


def read_json(path: Path, *, hint: str = "Restore the file, or run again.") -> dict[str, Any]:
    """Returns the JSON object in a file. Raises `UserError` if the file is missing, torn or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
        got = f"a JSON {type(value).__name__}"
    except OSError as error:
        got = error.strerror or str(error)
    except (ValueError, RecursionError) as error:
        got = f"no JSON ({error})"
    raise UserError(RUN_DAMAGED.at(str(path), got=got, content="a JSON object", fix=hint))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a .jsonl file, one from each line; [] without a file.

    A killed writer leaves an incomplete last line, which is skipped. Raises `UserError` with the line
    number for any other line that is not an object.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"a {type(record).__name__}")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            where, fix = f"{path}:{number}", "Remove that line, or restore the file."
            got = f"no JSON ({error})"
            raise UserError(RUN_DAMAGED.at(where, got=got, content="a JSON object", fix=fix)) from None
        records.append(record)
    return records


def plain(value: Any) -> Any:
    """Returns `value` in JSON's types: NaN and infinities become None, numpy numbers become Python's.

    Raises `TypeError` for other types. Tensors are refused because converting them waits for the GPU.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"got a {type(value).__name__}; expected numbers, text, lists and mappings")


def write_json_atomic(path: Path, value: Mapping[str, Any]) -> None:
    """Writes `plain(value)` atomically: a reader gets the old file or the new one, never a part."""
    write_text_atomic(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def write_text_atomic(path: Path, text: str) -> None:
    """Writes a temporary file, syncs it, renames it, syncs the folder. Raises `MachineError` on failure."""
    # The process id keeps two writers of one file (a run and an evaluation) apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        io_point(f"write {path.name}")
        temporary.write_text(text, encoding="utf-8")
        fsync(temporary)
        io_point(f"publish {path.name}")
        os.replace(temporary, path)
        io_point(f"sync the name of {path.name}")
        fsync(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise MachineError(unwritable(path, error)) from error


def io_point(name: str) -> None:
    """Marks each point before a change to a run's files on disk. Tests stop the process here."""


def fsync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are physically on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritable(path: Path, error: OSError) -> Problem:
    """Returns the problem of a file that the file system refused to write."""
    return RUN_CANNOT_WRITE.at(str(path), got=error.strerror or str(error))
