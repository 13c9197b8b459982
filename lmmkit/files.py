"""Small files of JSON and text: read with what is wrong told, written whole or not at all."""

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


def read_json(path: Path, *, mend: str = "Restore the file, or run again.") -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError` if it is missing, torn or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(unreadable(str(path), error.strerror or str(error), mend)) from None
    except (ValueError, RecursionError) as error:
        raise UserError(unreadable(str(path), f"no JSON ({error})", mend)) from None
    if not isinstance(value, dict):
        raise UserError(unreadable(str(path), f"a JSON {type(value).__name__}", mend))
    return value


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, one a line; [] without a file.

    A last line that breaks off is what a killed writer leaves, and is skipped. Raises `UserError`
    naming the line for any other that is not an object.
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
            mend = "Remove that line, or restore the file."
            raise UserError(unreadable(f"{path}:{number}", f"no JSON ({error})", mend)) from None
        records.append(record)
    return records


def plain(value: Any) -> Any:
    """`value` as JSON can say it: NaN and infinities become None, numpy numbers Python's.

    Raises `TypeError` for anything else, tensors among it: they would hide a wait for the GPU.
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
    raise TypeError(f"got a {type(value).__name__}; want numbers, text, lists and mappings")


def write_json_atomic(path: Path, value: Mapping[str, Any]) -> None:
    """Writes `plain(value)` so that a reader sees the old file or the new, never a part."""
    write_text_atomic(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def write_text_atomic(path: Path, text: str) -> None:
    """Temporary file, fsync, rename, fsync of the folder. Raises `MachineError`."""
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
    """Called before every change to the disk that a run's files hang on; tests die here."""


def fsync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unreadable(where: str, got: str, mend: str) -> Problem:
    """What is no JSON object where one should be."""
    return Problem("run/unreadable", where, got, "a JSON object", mend)


def unwritable(path: Path, error: OSError) -> Problem:
    """What the file system refused."""
    return Problem(
        "run/cannot-write",
        str(path),
        error.strerror or str(error),
        "a folder that can be written to, on a file system with locks",
        "Free space or change its rights, or name another folder (`--out DIR`).",
    )
