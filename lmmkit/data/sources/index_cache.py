"""Stores on disk what one pass over data files found: arrays, counts, bad records.

An index is in `$LMMKIT_CACHE`, else `$XDG_CACHE_HOME/lmmkit`, else `~/.cache/lmmkit`, never in the
folder of the data, which may be read-only. An index is only a cache: it is built again if its files
changed or it is damaged, and every record that is read through it is checked again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmmkit.data.sources.bad_records import BadRecord
from lmmkit.data.sources.json_stream import open_regular
from lmmkit.errors import UserError
from lmmkit.errors.data import RECORDS_CHANGED, RECORDS_FILE
from lmmkit.runs.files import file_crc32

_FORMAT = 10  # increase it when the content of an index, or the rule for good records, changes
_META, _BAD = "index.json", "bad.jsonl"
_SPOTS, _SPOT = 64, 4096


@dataclass(frozen=True, eq=False)
class Index:
    """Holds an index. `meta` is plain JSON; `arrays` are memory maps of files in `folder`, or in memory
    without a folder. `meta["stat"]`: size and time of change of each indexed file.

    Pickles as its folder, so that a data worker shares the pages of the maps.
    """

    meta: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    bad: tuple[BadRecord, ...] = ()
    folder: Path | None = None

    def __reduce__(self) -> tuple[object, ...]:
        if self.folder is None:
            return Index, (dict(self.meta), dict(self.arrays), self.bad)
        return _reopened, (self.folder, dict(self.meta))


def open_index(
    key: str, files: Iterable[Path], build: Callable[[], Index], *, rebuild: bool = False,
    beside: Sequence[int] = (),
) -> Index:  # fmt: skip
    """Returns the stored index of `files` under `key`, or calls `build` and stores its index if possible. `beside`:
    what it depends on beside the files."""
    marks = fingerprint(files)
    name = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    stamp = hashlib.blake2b(json.dumps([_FORMAT, key, marks, *beside]).encode(), digest_size=12).hexdigest()
    cache = cache_folder()
    folder = cache / f"{name}-{stamp}"
    if not rebuild and (kept := load_index(folder)) is not None:
        return kept
    built = build()
    built = replace(built, meta={**built.meta, "stat": [mark[:2] for mark in marks]})
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _save(built, folder)
    except OSError as error:
        print(f"note: no index kept in {cache}: {error.strerror}; set LMMKIT_CACHE", file=sys.stderr)
        return built
    for other in cache.glob(f"{name}-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return load_index(folder) or built


def cache_folder() -> Path:
    """Returns the folder of all indexes."""
    own, shared = os.environ.get("LMMKIT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    home = Path(shared) if shared else Path(os.path.expanduser("~")) / ".cache"
    return (Path(own) if own else home / "lmmkit") / "index"


def fingerprint(files: Iterable[Path]) -> list[list[int]]:
    """Returns for each file its size, its time of change in ns, and a crc of sample blocks spread over it.

    Raises `UserError` for a file that cannot be read.
    """
    found = []
    for path in files:
        try:
            with open_regular(path) as file:
                stat, crc = os.fstat(file.fileno()), 0
                for i in range(_SPOTS):
                    file.seek(max(0, stat.st_size - _SPOT) * i // (_SPOTS - 1))
                    crc = zlib.crc32(file.read(_SPOT), crc)
        except OSError as error:
            got = error.strerror or str(error)
            problem = RECORDS_FILE.at(str(path), got=got, expected="a file that can be read")
            raise UserError(problem) from error
        found.append([stat.st_size, stat.st_mtime_ns, crc])
    return found


def load_index(folder: Path) -> Index | None:
    """Returns the index in a folder; None if there is none, or if it differs from what was written."""
    try:
        meta = json.loads((folder / _META).read_bytes())
        if meta.pop("crc") != _crc(meta):
            return None
        for name, crc in meta["files"].items():
            if file_crc32(folder / name) != crc:
                return None
        lines = (folder / _BAD).read_text("utf-8").splitlines()
        return replace(_opened(folder, meta), bad=tuple(BadRecord(*json.loads(line)) for line in lines))
    except Exception:  # any process may have written this cache: on any error, build it again
        return None


def _opened(folder: Path, meta: dict[str, Any]) -> Index:
    arrays = {
        name.removesuffix(".npy"): np.load(folder / name, mmap_mode="r", allow_pickle=False)
        for name in meta["files"]
        if name.endswith(".npy")
    }
    return Index(meta, arrays, (), folder)


def _reopened(folder: Path, meta: dict[str, Any]) -> Index:
    """Opens the index in another process. Raises `UserError` if it cannot be read."""
    try:
        return _opened(folder, meta)
    except (OSError, ValueError) as error:
        raise UserError(RECORDS_CHANGED.at(str(folder), got="no readable index")) from error


def _save(index: Index, folder: Path) -> None:
    """Writes the index to a temporary folder, then renames it to `folder`.

    Not by `write_aside`: several processes may write one index at the same time, the first one counts, and
    a cache needs no sync.
    """
    aside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        for name, array in index.arrays.items():
            np.save(aside / f"{name}.npy", array, allow_pickle=False)
        lines = (json.dumps(list(bad)) + "\n" for bad in index.bad)
        (aside / _BAD).write_text("".join(lines), encoding="utf-8")
        files = {path.name: file_crc32(path) for path in sorted(aside.iterdir())}
        meta = {**index.meta, "files": files}
        (aside / _META).write_text(json.dumps({**meta, "crc": _crc(meta)}), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        try:
            os.rename(aside, folder)
        except OSError:
            if not folder.exists():  # else another process wrote it first
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _crc(meta: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())
