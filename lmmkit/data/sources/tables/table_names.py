"""Finds the parquet and Arrow files that `records` names: a file, a pattern, or a folder that `datasets` wrote."""

from __future__ import annotations

import glob
import json
import os
import re
from pathlib import Path

from lmmkit.errors import UserError
from lmmkit.errors.data import RECORDS_FILE

KINDS = (".parquet", ".arrow")
JSON_KINDS = (".json", ".jsonl")
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_NUMBERED = re.compile(r"(.*)-\d{5}-of-\d{5}")
_SPLIT = re.compile(r"(?<![a-z])(train|validation|valid|val|dev|test|eval)(?![a-z])", re.IGNORECASE)


def is_table(path: Path) -> bool:
    """Returns whether `records` of kind `messages` names parquet or Arrow files, and no JSON file."""
    return path.suffix not in JSON_KINDS


def table_files(path: Path) -> list[Path]:
    """Returns the files, in the order of their records. Raises `UserError` if there are none, or if a folder has
    files of several splits."""
    if "\0" in str(path):
        raise _refused(path, "a NUL in it", "a file, a pattern or a folder")
    if path.is_dir():
        return _of_folder(path)
    if any(mark in str(path) for mark in "*?[") and not path.exists():
        found = [Path(name) for name in sorted(glob.glob(str(path)))]
        if not found:
            raise _refused(path, "no such file", "parquet or Arrow files")
        return found
    return [path]


def tables_size(path: Path) -> int:
    """Returns the bytes of all files; 0 for a name that `table_files` refuses."""
    try:
        return sum(file.stat().st_size for file in table_files(path))
    except (UserError, OSError, ValueError):
        return 0


def _of_folder(folder: Path) -> list[Path]:
    if (folder / _STATE).is_file():
        return _of_state(folder)
    if (folder / _SPLITS).is_file():
        inner = sorted(each.name for each in folder.iterdir() if (each / _STATE).is_file())
        got = f"a folder with the splits {', '.join(inner)[:200]}"
        raise _refused(folder, got, "the folder of one split")
    found = sorted(each for each in folder.iterdir() if each.suffix in KINDS)
    if not found:
        raise _refused(folder, "a folder without parquet or Arrow files", "parquet or Arrow files")
    kind = found[0].suffix
    if any(each.suffix != kind for each in found):
        raise _refused(folder, "a folder with parquet and Arrow files", f"one kind, such as {folder}/*{kind}")
    splits = sorted({_split(each.stem) for each in found} - {""})
    if len(splits) > 1:
        got = f"files of the splits {', '.join(splits)[:200]}"
        raise _refused(folder, got, f"one split, such as {folder / splits[-1]}*{kind}")
    return found


def _split(stem: str) -> str:
    """Returns the split that the name of a file says; "" if it says none."""
    if found := _NUMBERED.match(stem):
        return found[1]
    return found[1] if (found := _SPLIT.search(stem)) else ""


def _of_state(folder: Path) -> list[Path]:
    """Returns the files that `save_to_disk` has written."""
    try:
        state = json.loads((folder / _STATE).read_bytes())
        names = [each["filename"] for each in state["_data_files"]]
        good = all(type(name) is str and os.path.basename(name) == name != "" for name in names)
    except (OSError, ValueError, KeyError, TypeError):
        good, names = False, []
    if not good or not names:
        raise _refused(
            folder / _STATE, "no names of data files", "the list `_data_files` that `save_to_disk` writes"
        )
    return [folder / name for name in names]


def _refused(path: Path, got: str, expected: str) -> UserError:
    return UserError(RECORDS_FILE.at(str(path), got=got, expected=expected))
