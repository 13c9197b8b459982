"""Locks a run folder, so that only one process at a time writes to it. The kernel enforces the lock."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from lmmkit.errors import MachineError, Problem, UserError
from lmmkit.errors.training import LOCKED
from lmmkit.runs.files import unwritable
from lmmkit.runs.run_folder import RunFolder

# Lock handles of this process. A lock lasts as long as any copy of its handle. So a forked data worker
# closes its copies; else an orphaned worker would keep the folder of a killed run locked.
_locks: set[int] = set()


def _drop_inherited() -> None:
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_drop_inherited)


@contextmanager
def lock(run: RunFolder) -> Iterator[None]:
    """Locks the run folder until the block ends. The kernel frees it if the process dies.

    Raises `UserError` with the owner if another process trains there, and `MachineError` if the file
    system does not support locks or the file cannot be made.
    """
    try:
        handle = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise MachineError(unwritable(run.lock, error)) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(handle, 4096)
        os.close(handle)
        raise UserError(_taken(run, owner)) from None
    except OSError as error:
        os.close(handle)
        raise MachineError(unwritable(run.lock, error)) from error
    _locks.add(handle)
    try:
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(handle, 0)
        os.pwrite(handle, (json.dumps(owner) + "\n").encode(), 0)
        yield
    finally:
        # The file remains: if it were removed, two later owners could lock two different files. In a
        # forked child the handle is already closed, and its number may belong to another file.
        if handle in _locks:
            _locks.remove(handle)
            os.close(handle)


def _taken(run: RunFolder, owner: bytes) -> Problem:
    try:
        who = dict(json.loads(owner))
    except (ValueError, TypeError):  # the owner has the lock but has not written its data yet
        who = {}
    pid, host = who.get("pid", "unknown"), who.get("host", "unknown")
    got = f"an active run: process {pid} on {host}, since {who.get('started', 'just now')}"
    return LOCKED.at(str(run.lock), got=got, pid=pid, host=host)


def is_locked(run: RunFolder) -> bool:
    """Returns whether a process trains in the run folder now. Changes nothing."""
    try:
        handle = os.open(run.lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False
