"""Finds the parquet and Arrow files that `records` names: a file, a pattern, or a folder that `datasets` wrote."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from lmmkit.data.sources.tables.patterns import NUMBERED, files_of, require_distinct, require_one_set
from lmmkit.errors import UserError
from lmmkit.errors.data import RECORDS_FILE

KINDS = (".parquet", ".arrow")
JSON_KINDS = (".json", ".jsonl")
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_CACHE = re.compile(r"cache-([0-9a-f]+)(?:_\d+_of_\d+)?")  # `map` of `datasets` leaves it beside the data
_SPLIT = re.compile(r"(?<![a-z])(train|validation|valid|val|dev|test|eval)(?![a-z])", re.IGNORECASE)


def is_table(path: Path) -> bool:
    """Returns whether `records` of kind `messages` names parquet or Arrow files, and no JSON file."""
    return path.suffix not in JSON_KINDS


def table_files(path: Path) -> list[Path]:
    """Returns the files, in the order of their records. Raises `UserError` if there are none, if they are not of one
    data set, or if a folder has files of several splits or lacks some of its numbered files."""
    if "\0" in str(path):
        raise _refused(path, "a NUL in it", "a file, a pattern or a folder")
    if os.path.isdir(path):
        return _of_folder(path)
    if not (found := files_of(path)):
        raise _refused(path, "no such file", "parquet or Arrow files")
    _require_no_cache(path, found)
    return found


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
    found = sorted(each for each in folder.iterdir() if _named_as_table(each.name))
    below = _below(folder)
    if not found:
        got = "a folder without parquet or Arrow files" + f", which are in {below}" * bool(below)
        raise _refused(folder, got, str(folder / below) if below else "parquet or Arrow files")
    kind = found[0].suffix
    if below:
        got = f"a folder with such files and more of them below it, in {below}"
        raise _refused(folder, got, f"a pattern: {folder}/*{kind} for the first, {folder}/**/*{kind} for all")
    if any(each.suffix != kind for each in found):
        raise _refused(folder, "a folder with parquet and Arrow files", f"one kind, such as {folder}/*{kind}")
    splits = sorted({_split(each.stem) for each in found} - {""})
    if len(splits) > 1:
        got = f"files of the splits {', '.join(splits)[:200]}"
        raise _refused(folder, got, f"one split, such as {folder / splits[-1]}*{kind}")
    require_distinct(folder, found)
    _require_no_cache(folder, found)
    for begin, (total, numbers) in require_one_set(folder, found).items():
        first = int(total in numbers)  # some count from 1
        if absent := sorted(set(range(first, first + total)) - set(numbers)):
            missing = f"{os.path.basename(begin)}-{absent[0]:05d}-of-{total:05d}*{kind}"
            got = f"{len(numbers)} of {total} numbered files; the first that is not there is {missing}"
            raise _refused(folder, got, f"all of them, or a pattern that names some: {folder}/*{kind}")
    return found


def _below(folder: Path) -> str:
    """Returns the first folder, at most three levels below a folder, that contains tables; "" without one."""
    for at, folders, files in os.walk(folder):
        here = Path(at).relative_to(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and len(here.parts) < 3)
        if here.parts and any(map(_named_as_table, files)):
            return str(here)
    return ""


def _named_as_table(name: str) -> bool:
    """Returns whether a file of a folder is a table, by its name. A hidden one is none, as for a pattern."""
    return name.endswith(KINDS) and not name.startswith(".")


def _require_no_cache(where: Path, found: Sequence[Path]) -> None:
    """Raises `UserError` for what `datasets` keeps beside its data, which repeats records."""
    kept = {named[1]: path.name for path in found if (named := _CACHE.fullmatch(path.stem))}
    if len(kept) > 1 or (kept and not all(_CACHE.fullmatch(path.stem) for path in found)):
        got = f"{min(kept.values())} among other files, which `datasets` keeps of data that it changed"
        raise _refused(where, got, "a pattern that leaves it out, or names only it")


def _split(stem: str) -> str:
    """Returns the split that the name of a file says; "" if it says none."""
    if found := NUMBERED.match(stem):
        return found[1]
    return found[1] if (found := _SPLIT.search(stem)) else ""


def _of_state(folder: Path) -> list[Path]:
    """Returns the files that `save_to_disk` has written."""
    try:
        state = json.loads((folder / _STATE).read_bytes())
        names = [each["filename"] for each in state["_data_files"]]
        indices = state.get("_indices_data_files")
        good = all(type(name) is str and os.path.basename(name) == name != "" for name in names)
        good = good and len(set(names)) == len(names)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        good, names, indices = False, [], None
    if indices:
        got = "a selection of the records in a file of indices, as old versions of `datasets` wrote it"
        raise _refused(folder / _STATE, got, "a folder that `save_to_disk` of a present version has written")
    if not good or not names:
        raise _refused(
            folder / _STATE,
            "no names of data files, or one twice",
            "the list `_data_files` that `save_to_disk` writes",
        )
    return [folder / name for name in names]


def _refused(path: Path, got: str, expected: str) -> UserError:
    return UserError(RECORDS_FILE.at(str(path), got=got, expected=expected))
