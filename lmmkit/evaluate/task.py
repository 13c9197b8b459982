"""The interface of an evaluation task, and the figures that it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lmmkit.errors import Problem, did_you_mean
from lmmkit.errors.plan import NO_DATA, NO_STAGE
from lmmkit.recipe import Control, Recipe, Task

if TYPE_CHECKING:
    from lmmkit.api.sample import Sample
    from lmmkit.evaluate.keep import Keep
    from lmmkit.inference.chat_model import ChatModel
    from lmmkit.majority import Majority
    from lmmkit.plan.stage_plan import StagePlan

Better = Literal["higher", "lower"]
Line = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Holds one result: the mean `value` of `n` items, with its 95 % interval from `low` to `high` and its
    value at `chance`, as far as these are known."""

    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    n: int

    def in_percent(self) -> str:
        """Returns "76.1 (74.0-78.2)", or "76.1" without an interval."""
        return self.scaled(100.0)

    def scaled(self, scale: float) -> str:
        """Returns the value and its interval, multiplied by `scale`."""
        ends = [f"{scale * each:.1f}" for each in (self.low, self.high) if each is not None]
        return f"{scale * self.value:.1f}" + (f" ({'-'.join(ends)})" if ends else "")

    def as_difference(self, scale: float = 100.0) -> str:
        """Returns a difference, multiplied by `scale`: "+1.2 (-0.4 to +2.8)"."""
        ends = [f"{scale * each:+.1f}" for each in (self.low, self.high) if each is not None]
        return f"{scale * self.value:+.1f}" + (f" ({' to '.join(ends)})" if ends else "")


def percent(share: float | None) -> str:
    """Returns a share as "76.1"; None as ""."""
    return "" if share is None else f"{100 * share:.1f}"


@dataclass(frozen=True)
class EvalTask(ABC):
    """Holds one task of a recipe's `evaluate` section. Each kind of task is a subclass, listed in `kinds.py`."""

    needs_data: ClassVar[bool] = False  # whether `run` needs the samples of a source
    needs_baseline: ClassVar[bool] = False  # whether `run` uses the majority baseline

    name: str
    section: Task

    def problems(self, recipe: Recipe) -> list[Problem]:
        """Returns the problems of this task that can be found before a model is loaded."""
        found = stage_problems(self.name, self.section, recipe)
        if self.needs_data and self.section.data is None:
            found.append(NO_DATA.at(recipe.where(f"evaluate.tasks.{self.name}"), got="no `data`"))
        return found

    def input_problems(self) -> list[Problem]:
        """Returns what is wrong with the files that the task reads itself. May read all of them, without images."""
        return []

    @abstractmethod
    def run(
        self, chat_model: ChatModel, samples: Sequence[Sample], *,
        controls: Iterable[Control] = (), baseline: Majority | None = None, keep: Keep | None = None,
    ) -> dict[str, Figure]:  # fmt: skip
        """Returns the figures of a model by name; "FIGURE/DETAIL" is a detail of FIGURE.

        Args:
            chat_model: the model.
            samples: the readable samples of the task's data.
            controls: the conditions of `controls.py`, for the kinds that ask questions about images.
            baseline: gives the chance level of short answers, if known.
            keep: where the answers are kept, for the kinds that ask questions; None: nowhere.
        """

    def facts(self, keep: Keep) -> dict[str, Any]:
        """Returns what `results.json` holds beside the figures, after `run`."""
        return {}

    @abstractmethod
    def figures(self, plan: StagePlan) -> dict[str, Better]:
        """Returns the figures that can select the best weights of a stage, each with its better direction."""

    def remarks(self, figures: Mapping[str, Figure]) -> list[str]:
        """Returns lines of text about figures that the table does not have."""
        return []

    def table(self, figures: Mapping[str, Figure]) -> list[Line]:
        """Returns the figures as text: the headings, then one line for each figure."""
        lines: list[Line] = [("figure", "value", "chance", "n")]
        for name, figure in figures.items():
            chance = "" if figure.chance is None else f"{figure.chance:.4f}"
            lines.append((name, f"{figure.value:.4f}", chance, str(figure.n)))
        return lines


def stage_problems(name: str, section: Task, recipe: Recipe) -> list[Problem]:
    """Returns a problem if the task names a stage that the recipe does not have."""
    stage = section.stage
    if stage is None or stage in recipe.stages:
        return []
    where = recipe.where(f"evaluate.tasks.{name}.stage")
    return [NO_STAGE.at(where, got=f"`{stage}`", nearest=did_you_mean(stage, recipe.stages))]
