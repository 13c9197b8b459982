"""Space for checkpoints on the disk, checked before a run and before each save."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from lmmkit.errors import MachineError, Problem
from lmmkit.errors.training import CHECKPOINT_CANNOT_WRITE
from lmmkit.runs.files import fsync
from lmmkit.runs.run_folder import RunFolder

_HEADROOM = 1.1  # 10 % more than the checkpoints, for logs and headers
_TRIAL_BYTES = 1 << 20


def check_space(run: RunFolder, room: int) -> None:
    """Raises `MachineError` if checkpoints of `room` bytes do not fit on the disk beside those that exist, or
    if a trial file cannot be written."""
    files = (file for kept in ("step-*/*", "frozen-*/*") for file in run.checkpoints.glob(kept))
    there = sum(file.stat().st_size for file in files if file.is_file())
    needed = int(_HEADROOM * room) - there
    trial = run.path / ".trial.tmp"  # free space does not show a quota
    try:
        require(needed, run.path)
        trial.write_bytes(bytes(_TRIAL_BYTES))
        fsync(trial)
    except OSError as error:
        raise MachineError(cannot_write(run.checkpoints, needed, error)) from error
    finally:
        with suppress(OSError):  # on a read-only disk, `unlink` fails even without a file
            trial.unlink()


def require(needed: int, folder: Path) -> None:
    """Raises `OSError` if the disk of `folder` has less than `needed` free bytes."""
    if needed > free(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def free(folder: Path) -> int:
    """Returns the free bytes on the disk of a folder, which may not exist yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def cannot_write(target: Path, needed: int, error: Exception) -> Problem:
    """Returns the problem of a checkpoint that cannot be written to `target`."""
    got = f"{error} ({needed:,} bytes needed, {free(target):,} free)"
    return CHECKPOINT_CANNOT_WRITE.at(str(target), got=got)
