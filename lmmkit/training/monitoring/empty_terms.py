"""Terms that have had nothing to average since a stage began: a recipe and data that do not fit."""

from __future__ import annotations

from dataclasses import dataclass, field

from lmmkit.errors import UserError
from lmmkit.errors.training import IDLE_TERM
from lmmkit.training.step import BY_SOURCE, StepReport
from lmmkit.training.triggers import Position

IDLE_STEPS = 50  # steps in which a term may have nothing to count, before that is an error


@dataclass
class EmptyTermCheck:
    """Counts the items of each term over a stage's first steps, or all of a shorter one."""

    steps: int

    items: dict[str, int] = field(default_factory=dict)

    def check(self, report: StepReport, position: Position) -> None:
        """Raises `UserError` when by then a term has had nothing to average."""
        for name, value in report.terms.items():
            if name.startswith(BY_SOURCE):
                continue
            self.items[name] = self.items.get(name, 0) + (value is not None)
        idle = [name for name, n in self.items.items() if n == 0]
        if position.stage_step == min(IDLE_STEPS, self.steps) and idle:
            raise UserError(
                IDLE_TERM.at(
                    f"stages.{position.stage}.losses.{name}",
                    got=f"no item for term `{name}` in the first {position.stage_step} steps",
                )
                for name in idle
            )
