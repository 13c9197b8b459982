"""Actions that run every n steps: image logging, validation, saving."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lmmkit.errors import MachineError
from lmmkit.training.signals import Interrupted

_FAILED_SAVES = 3  # the failed save in a row that ends the run


@dataclass(frozen=True)
class Position:
    """Describes the progress of a run: the stage, all updates so far (`step`), and those of the stage."""

    stage: str
    step: int
    stage_step: int


@dataclass(frozen=True)
class Every:
    """Calls `do` after every `n`th step of the run and after the last step of a stage; never if n = 0."""

    n: int
    do: Callable[[Position], None]

    def __call__(self, position: Position, *, last: bool) -> None:
        if self.n > 0 and (last or position.step % self.n == 0):
            self.do(position)


@dataclass
class SaveRetry:
    """Calls `write` to save. A failed save is reported and retried at the next interval.

    The third failure in a row raises its `MachineError`.
    """

    notify: Callable[[str], None]
    failed: int = 0
    saved: Position | None = None

    def __call__(self, at: Position, write: Callable[[Position], None]) -> None:
        try:
            self.now(at, write)
        except MachineError as error:
            self.failed += 1
            if self.failed >= _FAILED_SAVES:
                raise
            self.notify(f"no checkpoint of step {at.step} (failed {self.failed} of {_FAILED_SAVES}): {error}")

    def now(self, at: Position, write: Callable[[Position], None]) -> None:
        """Saves, unless this position is saved already. Raises `MachineError` on the first failure."""
        if self.saved != at:
            write(at)
            self.saved, self.failed = at, 0


def run_due(entries: Iterable[Every], position: Position, steps: int) -> bool:
    """Runs the actions that are due at a step. Returns False if a stop interrupts them."""
    try:
        for entry in entries:
            entry(position, last=position.stage_step == steps)
    except Interrupted:
        return False
    return True
