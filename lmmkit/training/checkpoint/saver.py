"""Writes checkpoints while the loop waits, or in a thread from a copy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from torch import Tensor

from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint.frozen_weights import OnDisk
from lmmkit.training.checkpoint.manifest import Frozen
from lmmkit.training.checkpoint.rng import rng_state
from lmmkit.training.checkpoint.tensor_files import RankSlices, rank_slices
from lmmkit.training.checkpoint.write import put
from lmmkit.training.distributed.process_group import Ranks

_GRACE = 30.0  # seconds between the signal that torchrun passes on and its kill


class Saver:
    """Saves the checkpoints of a stage. `in_thread`: in a thread, from a host copy, while training continues.

    At most one checkpoint is written at a time. The next `check` or `save` raises an error from the thread;
    so does leaving the context, which waits for the last save.
    """

    def __init__(
        self,
        run: RunFolder,
        *,
        keep: int,
        ranks: Ranks,
        in_thread: bool,
        frozen: Mapping[str, Tensor] = {},
        before: Frozen | None = None,
    ):
        """Prepares to save. `frozen`: tensors that the stage does not train; `before`: their files, as listed
        by the checkpoint from which the stage resumes."""
        self._run, self._keep, self._ranks = run, keep, ranks
        self._writers = ranks.new_group() if in_thread else ranks
        self._in_thread, self._warned = in_thread, False
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._names = frozenset(frozen)
        reusable = before is not None and before["tensors"] == sorted(frozen)
        self._on_disk = OnDisk(rank_slices(frozen, ranks, frozen).marks, before if reusable else None)
        self._copy: RankSlices | None = None  # its memory is reused: fresh pages cost more than the copy

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Writes the checkpoint of `step`, or copies its tensors and starts a thread that writes them."""
        self.wait()
        slices, rng = rank_slices(tensors, self._ranks, self._names), rng_state()

        def write(slices: RankSlices = slices) -> None:
            start = time.monotonic()
            put(
                self._run,
                step,
                slices,
                state,
                keep=self._keep,
                rng=rng,
                ranks=self._writers,
                on_disk=self._on_disk,
            )
            self._warn(step, time.monotonic() - start)

        if not self._in_thread:
            return write()
        self._copy = slices.copied(self._copy)
        self._thread = threading.Thread(target=self._guarded, args=(write, self._copy), daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises the error of the thread, if any."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Waits for the save in progress, if any; raises its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _warn(self, step: int, seconds: float) -> None:
        """Warns once that torchrun kills ranks before such a save ends: a stop would lose the last steps."""
        if self._ranks.alone or self._warned or seconds <= _GRACE:
            return
        self._warned = True
        self._ranks.log_once(
            f"the checkpoint of step {step} took {seconds:.0f} s; torchrun kills ranks {_GRACE:.0f} s after a signal,"
            " so a stop may lose the steps since the one before. Save more often (`output.save_every`), or to a faster"
            " disk."
        )

    def _guarded(self, write: Callable[[RankSlices], None], slices: RankSlices) -> None:
        try:
            write(slices)
        except Exception as error:  # `check` raises it in the loop's thread
            self._error = error

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None and self._ranks.alone:
            self._thread.join()  # a failing run completes the save in progress
