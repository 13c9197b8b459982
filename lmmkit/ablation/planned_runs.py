"""The runs of a grid and their stages, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lmmkit.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """Describes one stage to train. `recipe` ends with this stage and has only the plugins that it uses.

    `shape`: a hash of all that decides what a step costs. `data`: the identity of the sources that it learns from.
    """

    key: str
    shape: str
    stage: str
    steps: int
    recipe: Recipe
    before: StageRun | None
    data: Mapping[str, Any]

    @property
    def steps_before(self) -> int:
        """Returns the steps of the stages before it, from which on those of a run are counted."""
        names = list(self.recipe.stages)
        earlier = names[: names.index(self.stage)]
        return sum(self.recipe.stages[name].length.steps or 0 for name in earlier)


@dataclass(frozen=True, kw_only=True)
class GridRun:
    """Describes one run of an arm: its stages in order. `equal`: what the comparison holds equal. `questions`: hashes
    of the evaluation tasks, with their data, by name."""

    arm: str
    equal: str
    seed: int
    root: str
    branch: int
    stages: tuple[StageRun, ...]
    questions: Mapping[str, str]

    @property
    def last(self) -> StageRun:
        """Returns the last stage, whose run folder is evaluated."""
        return self.stages[-1]

    @property
    def key(self) -> str:
        """Returns the key of the whole run."""
        return self.last.key


def unique_stages(runs: Iterable[GridRun]) -> dict[str, StageRun]:
    """Returns all stages by key, each after the one that it starts from."""
    return {stage.key: stage for run in runs for stage in run.stages}
