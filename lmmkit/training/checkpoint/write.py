"""Writing checkpoints: aside, listed last, renamed once; and clearing what a killed process left.

Every change to the disk is announced by `io_point` and waited for (`fsync`) before the next that hangs
on it. `checkpoint.py` has the names, and reads.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from lmmkit.errors import MachineError, Problem
from lmmkit.errors.training import CHECKPOINT_CANNOT_WRITE
from lmmkit.runs.files import fsync, io_point
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import manifest, tensor_files
from lmmkit.training.checkpoint.linked_files import Lasting, Written
from lmmkit.training.checkpoint.read import RNG, STATE, STEP, steps
from lmmkit.training.checkpoint.tensor_files import HeldTensors, TensorSlice
from lmmkit.training.distributed.process_group import ALONE, Ranks

STAGED = re.compile(r"\.tmp-(\d{8})-[0-9a-f]+", re.ASCII)
TRASH = re.compile(r"\.trash-.+", re.ASCII)
SHARD_BYTES = 4 << 30
TRIAL_BYTES = 1 << 20
HEADROOM = 1.1  # a tenth more than the checkpoints, for logs and headers

_log = logging.getLogger(__name__)


def put(
    run: RunFolder,
    step: int,
    held: HeldTensors,
    state: Mapping[str, Any],
    *,
    keep: int,
    rng: Mapping[str, Tensor],
    ranks: Ranks = ALONE,
    lasting: Lasting | None = None,
) -> Path:
    """Writes the checkpoint of `step`, then removes all but the newest `keep` (at least 2).

    `held` tensors share no memory; `state` is JSON with text keys (NaN and infinities included, tuples
    come back as lists). Every rank calls it with its own generators. `lasting`: what earlier checkpoints wrote
    of what does not learn; this one is added to it. Raises `MachineError` on all ranks if one cannot write:
    the older checkpoints are untouched then, and training may go on.
    """
    if keep < 2:
        raise ValueError(f"got keep={keep}; want at least 2, so that one may be damaged")
    if not 0 <= step < 10**8:
        raise ValueError(f"got step {step}; want 0 to 99999999")
    _require_text_keys(state, "state")
    text = json.dumps(dict(state), indent=1) + "\n"

    target = run.checkpoints / f"step-{step:08d}"
    staging = run.checkpoints / ranks.broadcast(f".tmp-{step:08d}-{secrets.token_hex(4)}")
    lasting = Lasting() if lasting is None else lasting
    own = held.nbytes - lasting.spared(held) + sum(t.nbytes for t in rng.values()) + len(text)
    needed = sum(ranks.gather(own))
    try:
        _all_or_none(ranks, lambda: _make(run, staging, needed) if ranks.first else None)
        written = _all_or_none(ranks, lambda: _stage(staging, held, rng, ranks, lasting))
        _all_or_none(ranks, lambda: _list(staging, target, held, text, written) if ranks.first else None)
    except OSError as error:
        if ranks.first:
            shutil.rmtree(staging, ignore_errors=True)
        raise MachineError(_unwritten(target, needed, _free(run.path), error)) from error
    lasting.published(target)
    if ranks.first:
        _prune(run, keep)
    return target


def _all_or_none(ranks: Ranks, do: Callable[[], Any]) -> list[Any]:
    """What `do` gave on every rank; what one could not do is raised on all."""
    try:
        told = [do(), None]
    except (OSError, SafetensorError) as error:
        told = [None, str(error)]
    told = ranks.gather(told)
    wrong = [f"rank {rank}: {why}" if ranks.world > 1 else why for rank, (_, why) in enumerate(told) if why]
    if wrong:
        raise OSError(wrong[0])
    return [value for value, _ in told]


def sweep(run: RunFolder) -> tuple[str, ...]:
    """Clears what a killed process left behind, and tells what it did; only under the run's lock.

    A staged folder with a sound manifest lacks nothing but its name: it gets it, unless a
    checkpoint of that step is there. That is what saves a step that was being written anew.
    Raises `MachineError` if it cannot be given its name.
    """
    notes = []
    for path in sorted(run.checkpoints.glob("*")) if run.checkpoints.is_dir() else ():
        if match := STAGED.fullmatch(path.name):
            target = path.with_name(f"step-{match[1]}")
            if not target.exists() and not manifest.verify(path):
                _finish(path, target)
                notes.append(f"finished {target.name}, which was all but saved")
                continue
        elif not TRASH.fullmatch(path.name):
            if not (STEP.fullmatch(path.name) and path.is_dir()):
                notes.append(f"ignored `{path.name}`: not a checkpoint")
            continue
        _delete(path)
        notes.append(f"removed {path.name}, left by a run that was stopped")
    return tuple(notes)


def check_space(run: RunFolder, checkpoint_bytes: int, *, keep: int) -> None:
    """At the start: room for `keep` checkpoints and one being written, and may it be written? Raises
    `MachineError`."""
    files = [f.stat() for f in run.checkpoints.glob("step-*/*") if f.is_file()]
    held = sum({(f.st_dev, f.st_ino): f.st_size for f in files}.values())  # a linked file lies there once
    needed = int(HEADROOM * (keep + 1) * checkpoint_bytes) - held
    free = _free(run.path)
    if needed > free:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise MachineError(_unwritten(run.checkpoints, needed, free, full))
    trial = run.path / ".trial.tmp"  # free space says nothing of a quota
    try:
        trial.write_bytes(bytes(TRIAL_BYTES))
        fsync(trial)
    except OSError as error:
        raise MachineError(_unwritten(run.checkpoints, needed, free, error)) from error
    finally:
        with suppress(OSError):  # on a read-only disk even what is not there cannot be removed
            trial.unlink()


def _make(run: RunFolder, staging: Path, needed: int) -> None:
    if needed > _free(run.path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    io_point("make the folder")
    staging.mkdir(parents=True)


def _stage(
    staging: Path, held: HeldTensors, rng: Mapping[str, Tensor], ranks: Ranks, lasting: Lasting
) -> list:  # fmt: skip
    """Writes this rank's files and waits for the disk; their sizes and crc32s, and the stretches of rows
    that lie in them."""
    files: dict[str, list[int]] = {}
    stretches = []
    lasting.staged.clear()
    shards = [*(("", shard) for shard in _shards(held.learning))]
    shards += [("frozen-", shard) for shard in _shards(held.lasting) if shard]
    for number, (kind, shard) in enumerate(shards):
        name = f"shard-{'' if ranks.alone else f'rank{ranks.rank:05d}-'}{kind}{number:05d}.safetensors"
        earlier = lasting.earlier(name, shard) if kind else None
        files[name] = _linked(staging / name, earlier) or _write_tensors(
            staging / name, {key: part.tensor for key, part in shard.items()}
        )
        if kind:
            lasting.stage(staging / name, shard, files[name])
        stretches += [[key, name, part.first, len(part.tensor)] for key, part in shard.items() if part.cut]
    name = RNG.format(ranks.rank)
    files[name] = _write_tensors(staging / name, rng)
    return [files, stretches]


def _list(staging: Path, target: Path, held: HeldTensors, state: str, written: list) -> None:
    """The first rank's part: what is left, the manifest last, and the name."""
    files: dict[str, list[int]] = {}
    pieces: dict[str, list] = {}
    for theirs, stretches in written:
        files |= theirs
        for key, *piece in stretches:
            pieces.setdefault(key, []).append(piece)
    files[STATE] = _write_bytes(staging / STATE, state.encode())
    pieces = {key: sorted(found, key=lambda piece: piece[1]) for key, found in pieces.items()}
    _write_bytes(staging / manifest.NAME, manifest.encode(files, held.layout, pieces))
    io_point("sync the folder")
    fsync(staging)
    _publish(staging, target)


def _shards(held: Mapping[str, TensorSlice]) -> Iterator[dict[str, TensorSlice]]:
    """Cuts by size, in the order given; at least one shard. A larger tensor stands alone."""
    shard: dict[str, TensorSlice] = {}
    size = 0
    for key, part in held.items():
        if shard and size + part.tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[key] = part
        size += part.tensor.nbytes
    yield shard


def _linked(path: Path, earlier: Written | None) -> list[int] | None:
    """Gives a file of an earlier checkpoint a name in this one, if it is whole by its size and the file
    system knows links; its size and crc32."""
    if earlier is None or earlier.path.stat().st_size != earlier.said[0]:
        return None
    io_point(f"link {path.name}")
    try:
        os.link(earlier.path, path)
    except OSError:
        return None
    return earlier.said


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> list[int]:
    io_point(f"write {path.name}")
    written = tensor_files.write(path, tensors)
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
    """Gives the staged folder its name. One of that step (saved anew, or damaged) steps aside."""
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
    fsync(target.parent.parent)  # the name `checkpoints` itself may be new


def _finish(staging: Path, target: Path) -> None:
    """The end of a save whose process died: it may have died before it had waited for the disk."""
    try:
        for file in staging.iterdir():
            fsync(file)
        fsync(staging)
        _publish(staging, target)
    except OSError as error:
        raise MachineError(_unwritten(target, 0, _free(staging), error)) from error


def _rename(path: Path, target: Path, why: str) -> None:
    io_point(why)
    os.rename(path, target)
    io_point("sync the names")
    fsync(target.parent)


def _prune(run: RunFolder, keep: int) -> None:
    """Keeps the newest `keep` that are complete and all newer ones; failing here fails nothing.

    Complete is judged by names and sizes: reading them all at every save would cost too much.
    """
    complete = 0
    for path in steps(run):
        if complete < keep:
            complete += not manifest.verify(path, contents=False)
            continue
        try:
            # Out of sight first: a folder that is half deleted must not look like a checkpoint.
            _rename(path, _trash(path), "prune")
        except OSError as error:
            _log.warning("could not prune %s: %s", path, error)
    for path in run.checkpoints.glob(".trash-*"):
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
    """JSON turns a number as a key into text without a word; a resumed run would not find it."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"got the key {key!r} in {where}; want text keys")
            _require_text_keys(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _require_text_keys(item, f"{where}[{number}]")


def _free(folder: Path) -> int:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _unwritten(target: Path, needed: int, free: int, error: Exception) -> Problem:
    got = f"{error} ({needed:,} bytes needed, {free:,} free)"
    return CHECKPOINT_CANNOT_WRITE.at(str(target), got=got)
