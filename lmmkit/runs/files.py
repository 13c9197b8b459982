"""Reads small JSON files, with problems for bad ones; writes files and folders completely or not at all."""

from __future__ import annotations

import errno
import json
import math
import numbers
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lmmkit.errors import MachineError, Problem, UserError
from lmmkit.errors.training import RUN_CANNOT_WRITE, RUN_DAMAGED
from lmmkit.progress import working_bytes


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


def is_file(path: Path) -> bool:
    """Returns whether a file is there; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def finite(value: object) -> float | None:
    """Returns `value` as a float; None unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer that no float can hold
        return None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a .jsonl file, one from each line; [] without a file.

    A killed writer leaves an incomplete last line, which is skipped. Raises `UserError` with the line
    number for any other line that is not an object, and for a file that cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        got, fix = error.strerror or str(error), "Restore the file, or its rights."
        raise UserError(RUN_DAMAGED.at(str(path), got=got, content="a file to read", fix=fix)) from None
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


@contextmanager
def write_aside(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder next to `folder`; syncs it and renames it to `folder` when the block ends.

    `folder` is new or empty. With `replace` it may have content, which stays until the new folder is
    complete, and is restored if the rename fails. If anything fails the temporary folder is removed.
    Only one process at a time may write a folder.
    """
    if not folder.name:
        raise OSError(errno.EBUSY, "the current folder, or the root, which cannot be renamed", str(folder))
    aside, old = folder.with_name(f".{folder.name}.{os.getpid()}.tmp"), _old(folder)
    try:
        clean_aside(folder)
        aside.mkdir(parents=True)
        yield aside
        for file in sorted(aside.iterdir()):
            fsync(file)
        fsync(aside)
        if replace and folder.is_symlink():
            folder.unlink()  # the target of the link must not be moved
        elif replace and folder.exists():
            io_point("set the old folder aside")
            os.rename(folder, old)
        io_point("publish the folder")
        os.rename(aside, folder)
        fsync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        _restore(folder)
        shutil.rmtree(aside, ignore_errors=True)
        raise


def clean_aside(folder: Path) -> None:
    """Cleans up after a process that died in `write_aside`: restores the old folder, removes partial ones."""
    _restore(folder)
    leftover = re.compile(rf"\.{re.escape(folder.name)}\.(\d+|old)\.tmp", re.ASCII)
    for path in folder.parent.glob(".*.tmp"):
        if leftover.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _restore(folder: Path) -> None:
    if (old := _old(folder)).exists() and not folder.exists():
        os.rename(old, folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old.tmp")


def file_crc32(path: Path) -> int:
    """Returns the crc32 of a file's bytes. Shows how far it is."""
    crc = done = 0
    with open(path, "rb") as file, working_bytes(f"reading {path.name}", path.stat().st_size) as move:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
            move(done := done + len(block))
    return crc


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
