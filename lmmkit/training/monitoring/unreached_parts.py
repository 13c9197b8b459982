"""Trainable parts that get no gradient in the first steps of a stage: no record reaches them.

Of plugins, each parameter is a part of its own: a plugin may forget to use one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from lmmkit.progress import plural
from lmmkit.training.distributed.fsdp import gather_full
from lmmkit.training.step import StepReport
from lmmkit.training.triggers import Position

FIRST_STEPS = 50  # steps after which a part without a gradient is reported


@dataclass
class UnreachedParts:
    """Looks at the gradients of each part until one is not zero; `steps` is the length of the stage.

    Gradients are zero, not absent, for a part that no record reaches: see `Objective`.
    """

    steps: int
    left: dict[str, list[nn.Parameter]] = field(default_factory=dict)

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, steps: int, plugins: nn.Module) -> UnreachedParts:
        """Returns the check of the parts that an optimizer updates. `plugins` has the modules of all plugins."""
        made = cls(steps)
        names = {id(parameter): f"plugins.{name}" for name, parameter in plugins.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                made.left.setdefault(names.get(id(parameter), str(group["part"])), []).append(parameter)
        return made

    def check(self, report: StepReport, at: Position) -> list[str]:
        """Returns, once, a line for each part that no step has reached. Every rank must call it, after a step
        and before the next one clears the gradients."""
        if report.empty or not self.left:
            return []
        self.left = {part: each for part, each in self.left.items() if not _has_gradient(each)}
        if at.stage_step < min(FIRST_STEPS, self.steps):
            return []
        unreached, self.left = self.left, {}
        return [
            f"stages.{at.stage}.train: {part} is trainable, but {plural(at.stage_step, 'step')} gave it no gradient"
            for part in unreached
        ]


def _has_gradient(parameters: list[nn.Parameter]) -> bool:
    """Returns whether any gradient on any rank is not zero."""
    found = [p.grad for p in parameters if p.grad is not None]
    return bool(found) and float(gather_full(torch.nn.utils.get_total_norm(found))) != 0
