"""Writes checkpoints to a temporary folder, the manifest last, then renames it; cleans up after a kill.

`io_point` precedes every change on disk. `fsync` completes each change before the next that depends on it.
`read.py` describes the files and reads them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from lmmkit.errors import MachineError
from lmmkit.progress import moving, working_bytes
from lmmkit.runs.files import fsync, io_point
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import disk_space, manifest
from lmmkit.training.checkpoint.frozen_weights import OnDisk, unlisted
from lmmkit.training.checkpoint.manifest import COPIES, FROZEN, Frozen
from lmmkit.training.checkpoint.read import RNG, STATE, STEP_FOLDER, steps
from lmmkit.training.checkpoint.tensor_files import RankSlices, TensorSlice, nbytes
from lmmkit.training.distributed.process_group import ALONE, Ranks
from lmmkit.weights import tensor_writer

_STAGED = re.compile(r"\.tmp-(\d{8})-[0-9a-f]+", re.ASCII)
_TRASH = re.compile(r"\.trash-.+", re.ASCII)
_KEPT = re.compile(f"{STEP_FOLDER.pattern}|{FROZEN.pattern}", re.ASCII)
SHARD_BYTES = 4 << 30

_log = logging.getLogger(__name__)


class SaveFolders(NamedTuple):
    """Names the folders of a save: `staging` becomes `target`; `home` is for frozen weights, or None."""

    staging: Path
    target: Path
    home: Path | None


def put(
    run: RunFolder,
    step: int,
    slices: RankSlices,
    state: Mapping[str, Any],
    *,
    keep: int,
    rng: Mapping[str, Tensor],
    ranks: Ranks = ALONE,
    on_disk: OnDisk | None = None,
) -> Path:
    """Writes the checkpoint of `step`, then removes all but the newest `keep` (at least 2).

    `slices` tensors share no memory; `state` is JSON with text keys (NaN and infinities are allowed, tuples are
    read back as lists). Every rank calls it, with `rng` of that rank. `on_disk`: the frozen weights that
    earlier saves wrote; this save updates it. Raises `MachineError` on all ranks if one cannot write: the
    older checkpoints are unchanged then, and training may continue.
    """
    if keep < 2:
        raise ValueError(f"got keep={keep}; want at least 2, so that one may be damaged")
    if not 0 <= step < 10**8:
        raise ValueError(f"got step {step}; want 0 to 99999999")
    _require_text_keys(state, "state")
    text = json.dumps(dict(state), indent=1) + "\n"

    on_disk = OnDisk() if on_disk is None else on_disk
    id_ = ranks.broadcast(f"{step:08d}-{secrets.token_hex(4)}")
    fresh = ranks.all_reduce_max(not on_disk.matches(slices, run.checkpoints)) and slices.frozen_names
    folders = SaveFolders(
        run.checkpoints / f".tmp-{id_}",
        run.checkpoints / f"step-{step:08d}",
        run.checkpoints / f"frozen-{id_}" if fresh else None,
    )
    own = nbytes(slices.changing) + sum(t.nbytes for t in rng.values()) + len(text)
    needed = sum(ranks.gather(own + (len(COPIES) * nbytes(slices.frozen) if fresh else 0)))
    try:
        _all_or_none(ranks, lambda: _make_folders(run, folders, needed) if ranks.first else None)
        written = _all_or_none(ranks, lambda: _stage(folders, slices, rng, ranks))
        frozen = _frozen(folders.home, slices, written) if folders.home else on_disk.files
        _all_or_none(
            ranks, lambda: _complete(folders, slices, text, written, frozen) if ranks.first else None
        )
    except OSError as error:
        if ranks.first:
            for path in (folders.staging, *unlisted(run)):
                shutil.rmtree(path, ignore_errors=True)
        raise MachineError(disk_space.cannot_write(folders.target, needed, error)) from error
    on_disk.marks, on_disk.files = slices.marks, frozen
    if ranks.first:
        _prune(run, keep)
    return folders.target


def _all_or_none(ranks: Ranks, do: Callable[[], Any]) -> list[Any]:
    """Returns the results of `do` from every rank. If it fails on one rank, raises `OSError` on all."""
    try:
        own = [do(), None]
    except (OSError, SafetensorError) as error:
        own = [None, str(error)]
    results = ranks.gather(own)
    wrong = [
        f"rank {rank}: {why}" if ranks.world > 1 else why for rank, (_, why) in enumerate(results) if why
    ]
    if wrong:
        raise OSError(wrong[0])
    return [value for value, _ in results]


def sweep(run: RunFolder) -> tuple[str, ...]:
    """Removes leftovers of a killed process and returns notes for the user. Requires the run's lock.

    A temporary folder with a sound manifest lacks only its final name. It is renamed, unless there is a
    checkpoint of that step already. So a kill while a step is saved again does not lose it. Raises
    `MachineError` if the folder cannot be renamed.
    """
    notes = []
    for path in sorted(run.checkpoints.glob("*")) if run.checkpoints.is_dir() else ():
        if match := _STAGED.fullmatch(path.name):
            target = path.with_name(f"step-{match[1]}")
            if not target.exists() and not manifest.verify(path):
                _finish(path, target)
                notes.append(f"finished {target.name}, which was all but saved")
                continue
        elif not _TRASH.fullmatch(path.name):
            if not (_KEPT.fullmatch(path.name) and path.is_dir()):
                notes.append(f"ignored `{path.name}`: not a checkpoint")
            continue
        _delete(path)
        notes.append(f"removed {path.name}, left by a run that was stopped")
    for path in unlisted(run):
        _delete(path)
        notes.append(f"removed {path.name}, which no checkpoint lists")
    return tuple(notes)


def _make_folders(run: RunFolder, folders: SaveFolders, needed: int) -> None:
    disk_space.require(needed, run.path)
    io_point("make the folder")
    folders.staging.mkdir(parents=True)
    if folders.home is not None:
        io_point("make the folder of frozen weights")
        folders.home.mkdir()


def _stage(folders: SaveFolders, slices: RankSlices, rng: Mapping[str, Tensor], ranks: Ranks) -> list:
    """Writes this rank's files and waits for the disk. Returns two results of `_write_parts`: for the
    checkpoint and for the frozen weights."""
    rank = "" if ranks.alone else f"rank{ranks.rank:05d}-"
    frozen: list = [{}, []]
    if (home := folders.home) is not None:
        frozen = _write_parts(slices.frozen, f"frozen-{rank}", [f"{home}/{copy}-" for copy in COPIES])
    own = _write_parts(slices.changing, f"shard-{rank}", [f"{folders.staging}/"])
    name = RNG.format(ranks.rank)
    own[0][name] = _write_tensors(folders.staging / name, rng)
    return [own, frozen]


def _write_parts(parts: Mapping[str, TensorSlice], kind: str, prefixes: Sequence[str]) -> list:
    """Writes slices to files `<prefix><kind><number>`, once for each prefix. Returns the files' sizes and
    crc32s, and the pieces of cut tensors."""
    files: dict[str, list[int]] = {}
    pieces, done = [], 0
    what = "frozen weights" if kind.startswith("frozen") else "the checkpoint"
    with working_bytes(f"writing {what}", len(prefixes) * nbytes(parts)) as move:
        for number, shard in enumerate(_shards(parts)):
            name, size = f"{kind}{number:05d}.safetensors", nbytes(shard)
            for prefix in prefixes:
                with moving(move, done, done + size):
                    files[name] = _write_tensors(
                        Path(prefix + name), {key: part.tensor for key, part in shard.items()}
                    )
                done += size
            pieces += [[key, name, part.first, len(part.tensor)] for key, part in shard.items() if part.cut]
    return [files, pieces]


def _collected(written: Iterable[list]) -> tuple[dict[str, list[int]], dict[str, list]]:
    """Returns the files of all ranks, and the pieces of each cut tensor in order."""
    files: dict[str, list[int]] = {}
    pieces: dict[str, list] = {}
    for theirs, cut in written:
        files |= theirs
        for key, *piece in cut:
            pieces.setdefault(key, []).append(piece)
    return files, {key: sorted(found, key=lambda piece: piece[1]) for key, found in pieces.items()}


def _frozen(home: Path, slices: RankSlices, written: list) -> Frozen:
    files, pieces = _collected(frozen for _, frozen in written)
    return {"folder": home.name, "files": files, "tensors": sorted(slices.frozen_names), "parts": pieces}


def _complete(
    folders: SaveFolders, slices: RankSlices, state: str, written: list, frozen: Frozen | None
) -> None:
    """Completes the save on the first rank: writes the state, the manifest last, and renames the folder."""
    if folders.home is not None:
        io_point("sync the folder of frozen weights")
        fsync(folders.home)
        fsync(folders.home.parent)
    files, pieces = _collected(own for own, _ in written)
    files[STATE] = _write_bytes(folders.staging / STATE, state.encode())
    _write_bytes(folders.staging / manifest.FILE_NAME, manifest.encode(files, slices.layout, pieces, frozen))
    io_point("sync the folder")
    fsync(folders.staging)
    _publish(folders.staging, folders.target)


def _shards(parts: Mapping[str, TensorSlice]) -> Iterator[dict[str, TensorSlice]]:
    """Groups slices into files by size, in the given order. A larger slice gets a separate file."""
    shard: dict[str, TensorSlice] = {}
    size = 0
    for key, part in parts.items():
        if shard and size + part.tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[key] = part
        size += part.tensor.nbytes
    if shard:
        yield shard


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> list[int]:
    io_point(f"write {path.name}")
    written = tensor_writer.write(path, tensors)
    io_point(f"sync {path.name}")
    fsync(path)
    return written


def _write_bytes(path: Path, content: bytes) -> list[int]:
    io_point(f"write {path.name}")
    path.write_bytes(content)
    io_point(f"sync {path.name}")
    fsync(path)
    return [len(content), zlib.crc32(content)]


def _publish(staging: Path, target: Path) -> None:
    """Renames the temporary folder to `target`. Moves an existing folder of that step to the trash first."""
    aside = _trash(target) if target.exists() else None
    if aside is not None:
        _rename(target, aside, "set aside")
    try:
        _rename(staging, target, "publish")
    except OSError:
        if aside is not None and not target.exists():
            os.rename(aside, target)
        raise
    io_point("sync the run")
    fsync(target.parent.parent)  # the folder `checkpoints` itself may be new


def _finish(staging: Path, target: Path) -> None:
    """Completes the save of a killed process, which may not have waited for the disk."""
    try:
        for file in staging.iterdir():
            fsync(file)
        fsync(staging)
        _publish(staging, target)
    except OSError as error:
        raise MachineError(disk_space.cannot_write(target, 0, error)) from error


def _rename(path: Path, target: Path, why: str) -> None:
    io_point(why)
    os.rename(path, target)
    io_point("sync the names")
    fsync(target.parent)


def _prune(run: RunFolder, keep: int) -> None:
    """Removes the checkpoints older than the newest `keep` complete ones. A failure is only logged.

    Only names and sizes decide whether one is complete: reading all files at every save would cost too much.
    """
    complete = 0
    for path in steps(run):
        if complete < keep:
            complete += not manifest.verify(path, contents=False)
            continue
        try:
            # Rename first: a partly deleted folder must not look like a checkpoint.
            _rename(path, _trash(path), "prune")
        except OSError as error:
            _log.warning("could not prune %s: %s", path, error)
    for path in (*run.checkpoints.glob(".trash-*"), *unlisted(run)):
        _delete(path)


def _delete(path: Path) -> None:
    io_point("delete")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
    if path.exists():
        _log.warning("could not remove %s; the next start tries again", path)


def _trash(path: Path) -> Path:
    return path.with_name(f".trash-{path.name}-{secrets.token_hex(4)}")


def _require_text_keys(value: Any, where: str) -> None:
    """Raises `TypeError` for other keys: JSON silently makes them text, and a resume would not find them."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"got the key {key!r} in {where}; want text keys")
            _require_text_keys(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _require_text_keys(item, f"{where}[{number}]")
