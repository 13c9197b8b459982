"""Terms that have had nothing to average since a stage began: a recipe and data that do not fit."""

from __future__ import annotations

from dataclasses import dataclass, field

from lmmkit.errors import Problem, UserError
from lmmkit.training.due import Position
from lmmkit.training.step import BY_SOURCE, Report

IDLE_STEPS = 50  # steps in which a term may have nothing to count, before that is an error


@dataclass
class Idle:
    """Counts the items of each term over a stage's first steps, or all of a shorter one."""

    steps: int

    items: dict[str, int] = field(default_factory=dict)

    def check(self, report: Report, position: Position) -> None:
        """Raises `UserError` when by then a term has had nothing to average."""
        for name, value in report.terms.items():
            if name.startswith(BY_SOURCE):
                continue
            self.items[name] = self.items.get(name, 0) + (value is not None)
        idle = [name for name, n in self.items.items() if n == 0]
        if position.stage_step == min(IDLE_STEPS, self.steps) and idle:
            raise UserError([_idle(position, name) for name in idle])


def _idle(at: Position, name: str) -> Problem:
    got = f"no item for term `{name}` in the first {at.stage_step} steps"
    mend = "Take it out of the stage's losses, or give it data it applies to (`lmmkit plugins trace`)."
    return Problem("train/idle-term", f"stages.{at.stage}.losses.{name}", got, "something to average", mend)
