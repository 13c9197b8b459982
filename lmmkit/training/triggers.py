"""What is due after a step: drawing, validating, saving, each every so many steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lmmkit.errors import MachineError
from lmmkit.training.signals import Interrupted

IN_A_ROW = 3  # times in a row that a checkpoint may fail to be written, less one


@dataclass(frozen=True)
class Position:
    """Where a run stands: updates made in all, the stage, updates made in it."""

    stage: str
    step: int
    stage_step: int


@dataclass(frozen=True)
class Every:
    """Calls `do` after every `n`th step of the run and after a stage's last, never with n = 0."""

    n: int
    do: Callable[[Position], None]

    def __call__(self, position: Position, *, last: bool) -> None:
        if self.n > 0 and (last or position.step % self.n == 0):
            self.do(position)


@dataclass
class SaveRetry:
    """Calls `write` when it is time to save. What cannot be written is told and tried again the next time;
    at the `IN_A_ROW`th time in a row the run ends with it, and so it does where there is no next time."""

    notify: Callable[[str], None]
    failed: int = 0
    saved: Position | None = None

    def __call__(self, at: Position, write: Callable[[Position], None]) -> None:
        try:
            self.now(at, write)
        except MachineError as error:
            self.failed += 1
            if self.failed >= IN_A_ROW:
                raise
            self.notify(f"no checkpoint of step {at.step} (failed {self.failed} of {IN_A_ROW}): {error}")

    def now(self, at: Position, write: Callable[[Position], None]) -> None:
        """As a run that ends here saves. Raises `MachineError` if it cannot be written."""
        if self.saved != at:
            write(at)
            self.saved, self.failed = at, 0


def run_due(entries: Iterable[Every], position: Position, steps: int) -> bool:
    """Does what is due at a step; False where a stop came in between."""
    try:
        for entry in entries:
            entry(position, last=position.stage_step == steps)
    except Interrupted:
        return False
    return True
