"""Terms without items since the start of a stage: the recipe does not fit the data."""

from __future__ import annotations

from dataclasses import dataclass, field

from lmmkit.errors import UserError
from lmmkit.errors.training import EMPTY_TERM
from lmmkit.training.step import BY_SOURCE, StepReport
from lmmkit.training.triggers import Position

IDLE_STEPS = 50  # steps after which a term without items is an error


@dataclass
class EmptyTermCheck:
    """Counts the steps in which each term has items; `steps` is the length of the stage."""

    steps: int

    items: dict[str, int] = field(default_factory=dict)

    def check(self, report: StepReport, position: Position) -> None:
        """Raises `UserError` if a term has no items up to step `IDLE_STEPS`, or in all of a shorter stage."""
        for name, value in report.terms.items():
            if name.startswith(BY_SOURCE):
                continue
            self.items[name] = self.items.get(name, 0) + (value is not None)
        idle = [name for name, n in self.items.items() if n == 0]
        if position.stage_step == min(IDLE_STEPS, self.steps) and idle:
            raise UserError(
                EMPTY_TERM.at(
                    f"stages.{position.stage}.losses.{name}",
                    got=f"no item for term `{name}` in the first {position.stage_step} steps",
                )
                for name in idle
            )
