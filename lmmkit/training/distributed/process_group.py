"""The processes that train one model together, and their communication on the host.

A process started by torchrun reads its rank from the environment. A process started by hand is `ALONE`: the
same methods return at once. Values are exchanged as JSON over gloo, never as pickles, and never inside a
signal handler.

The first rank that fails prints the error and stores its exit code. The others end with that code and print
nothing. A rank that waits in a collective is ended by its watch thread, with any backend.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lmmkit.errors import LmmkitError, MachineError
from lmmkit.errors.training import RANK_ENDED, TOO_FEW_DEVICES
from lmmkit.memory_faults import naming_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store

_TIMEOUT = timedelta(hours=1)  # for a rank that hangs; a failed rank is noticed at once
_FAILED, _CODE, _LEFT = "lmmkit/failed", "lmmkit/code", "lmmkit/left"
_LOOK = 0.5  # seconds between two checks for another rank's failure
_GRACE = 5.0  # seconds in which a rank may end by itself after another has failed


class OtherRankFailed(LmmkitError):
    """Reports that another rank failed and has printed the error."""

    def __init__(self, exit_code: int):
        super().__init__(())
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ranks:
    """Describes this process: its rank among `world` processes. `group` communicates between hosts."""

    world: int = 1
    rank: int = 0
    group: ProcessGroup | None = None

    @property
    def alone(self) -> bool:
        """Returns whether there is only one process, started by hand or by torchrun."""
        return self.world == 1

    @property
    def first(self) -> bool:
        """Returns whether this is the rank that writes the run folder and logs, and prints notes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all ranks, by rank: plain JSON values, including NaN and infinities."""
        if self.alone:
            return [value]
        import torch
        import torch.distributed as dist

        text = json.dumps(value).encode()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(text)]), group=self.group)
        widest = int(max(sizes))
        texts = [torch.zeros(widest, dtype=torch.uint8) for _ in range(self.world)]
        own = torch.frombuffer(bytearray(text.ljust(widest)), dtype=torch.uint8)
        dist.all_gather(texts, own, group=self.group)
        return [
            json.loads(text[: int(size)].numpy().tobytes()) for text, size in zip(texts, sizes, strict=True)
        ]

    def gather_rows(self, rows: Tensor | None, device: torch.device) -> tuple[Tensor | None, int]:
        """Returns the rows [N, ...] of all ranks, by rank, and the index of the first one of this rank.

        A rank without rows gives None; if no rank has any, the result is None too. They are on `device`.
        """
        if self.alone:
            return rows, 0
        import torch
        import torch.distributed as dist

        kinds = self.gather(None if rows is None else [list(rows.shape), str(rows.dtype)])
        sizes = [kind[0][0] if kind else 0 for kind in kinds]
        if not any(sizes):
            return None, 0
        (_, *shape), dtype = next(kind for kind in kinds if kind)
        own = torch.zeros(
            max(sizes), *shape, dtype=getattr(torch, dtype.removeprefix("torch.")), device=device
        )
        if rows is not None:
            own[: len(rows)] = rows
        found = [torch.zeros_like(own) for _ in range(self.world)]
        dist.all_gather(found, own, group=self.group)
        every = torch.cat([each[:size] for each, size in zip(found, sizes, strict=True)])
        return every, sum(sizes[: self.rank])

    def all_reduce_max(self, value: int) -> int:
        """Returns the maximum of all ranks' values, on every rank."""
        if self.alone:
            return value
        import torch
        import torch.distributed as dist

        number = torch.tensor([value])
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self.group)
        return int(number)

    def broadcast(self, value: Any = None) -> Any:
        """Returns the first rank's value on every rank; all ranks wait for it."""
        return self.gather(value if self.first else None)[0]

    def barrier(self) -> None:
        """Waits until all ranks have called it."""
        self.all_reduce_max(0)

    def log_once(self, text: str) -> None:
        """Prints a note for the user, on the first rank only."""
        if self.first:
            print(f"note: {text}", file=sys.stderr)

    def new_group(self) -> Ranks:
        """Returns these ranks with a separate group, for a thread that communicates during training."""
        if self.alone:
            return self
        import torch.distributed as dist

        group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        assert not isinstance(group, int), "every rank is in it"
        return Ranks(self.world, self.rank, group)


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Yields this process's rank among those that torchrun started; `ALONE` without torchrun.

    Inside another `joined` block it reuses that process group. CUDA devices, one for each local rank,
    communicate by NCCL, hosts by gloo.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        yield Ranks(dist.get_world_size(), dist.get_rank(), dist.group.WORLD)
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(_device())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT)
    ranks = Ranks(dist.get_world_size(), dist.get_rank(), dist.group.WORLD)
    with _failing_together(ranks), naming_memory(f"rank {ranks.rank} of {ranks.world}"):
        yield ranks
        ranks.barrier()  # the store's host must not exit while others still use it
    dist.destroy_process_group()


def _device() -> int:
    """Returns the CUDA device of this local rank. Raises `MachineError` if there is none."""
    import torch

    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= there:
        raise MachineError(
            TOO_FEW_DEVICES.at(f"local rank {local}", got="no CUDA device for it", devices=there)
        )
    return local


@contextmanager
def _failing_together(ranks: Ranks) -> Iterator[None]:
    """Lets only the first failed rank report its error, and ends every rank with its exit code."""
    from torch.distributed import distributed_c10d

    store = distributed_c10d._get_default_store()
    over = threading.Event()
    threading.Thread(target=_watch, args=(store.clone(), over), daemon=True).start()
    try:
        yield
    except Exception as error:
        shown = _explained(ranks, error, store)
        over.set()
        try:
            reported = store.add(_FAILED, 1) > 1
            if not reported:
                store.set(_CODE, str(shown.exit_code if isinstance(shown, LmmkitError) else 1))
            code = int(store.get(_CODE))
            _leave(ranks, store)
        except RuntimeError:  # the store's host ended without an error message
            raise shown from None
        if reported:
            raise OtherRankFailed(code) from None
        if shown is not error:
            raise shown from None
        raise
    finally:
        over.set()


def _leave(ranks: Ranks, store: Store) -> None:
    """Makes the first rank, which may host the store, wait until all ranks have read the failure."""
    left, until = store.add(_LEFT, 1), time.monotonic() + _GRACE + 1
    while ranks.first and left < ranks.world and time.monotonic() < until:
        time.sleep(0.05)
        left = store.add(_LEFT, 0)


def _explained(ranks: Ranks, error: Exception, store: Store) -> Exception:
    """Returns `error`. If it only reports a lost rank, waits for that rank; returns `MachineError`."""
    lost = isinstance(error, RuntimeError) and any(
        word in str(error).lower() for word in ("gloo", "nccl", "connection", "broken pipe")
    )
    if not lost:
        return error
    until = time.monotonic() + _GRACE / 2
    while time.monotonic() < until and not store.check([_CODE]):
        time.sleep(0.05)
    got = f"a rank that has ended ({str(error).splitlines()[0][:200]})"
    return MachineError(RANK_ENDED.at(f"rank {ranks.rank} of {ranks.world}", got=got))


def _watch(store: Store, over: threading.Event) -> None:
    """Ends this process when another rank has failed and this one does not end by itself."""
    try:
        while not over.wait(_LOOK):
            if store.check([_CODE]):
                if not over.wait(_GRACE):
                    code = int(store.get(_CODE))
                    store.add(_LEFT, 1)
                    os._exit(code)
                return
    except RuntimeError:  # the store's host ended: it has reported its error, or the loop will notice
        return
