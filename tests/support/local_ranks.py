"""Several ranks on this machine: forked, talking by gloo as torchrun's would, each with its own output."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from lmmkit.commands.support.common import show
from lmmkit.errors import LmmkitError

LONGEST = 240  # seconds: no child outlives a broken test


def start(world: int, body: Callable[[int], int | None], folder: Path) -> list[int]:
    """Forks `world` ranks that run `body(rank)`; returns their process ids. Rank R writes to output-R.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [_fork(world, rank, port, body, folder) for rank in range(world)]


def wait(pids: list[int]) -> list[int]:
    """Returns exit codes, or minus the signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def run(world: int, body: Callable[[int], int | None], folder: Path) -> list[str]:
    """Runs ranks that must all succeed; returns the output of each."""
    codes = wait(start(world, body, folder))
    outputs = [output_of(folder, rank) for rank in range(world)]
    assert codes == [0] * world, (codes, outputs)
    return outputs


def output_of(folder: Path, rank: int) -> str:
    return (folder / f"output-{rank}.txt").read_text()


def _fork(world: int, rank: int, port: int, body: Callable[[int], int | None], folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        output = os.open(folder / f"output-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.environ |= {
            "WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        faulthandler.dump_traceback_later(LONGEST, exit=True, file=2)
        code = body(rank) or 0
    except LmmkitError as error:
        show(error)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
