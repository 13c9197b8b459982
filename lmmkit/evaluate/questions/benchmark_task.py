"""A benchmark as a task: its items from the official files, asked of any model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import Image, ImageFit, Sample
from lmmkit.data.fits.rows import check_image
from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.errors.answers import NO_FILES
from lmmkit.evaluate.answers.locate import official_items
from lmmkit.evaluate.answers.outcome import facts_in
from lmmkit.evaluate.answers.probe import renamed
from lmmkit.evaluate.answers.schema import CONDITIONS
from lmmkit.evaluate.benchmarks.benchmark import DIFFERENCES, Benchmark, Item
from lmmkit.evaluate.benchmarks.names import BENCHMARKS
from lmmkit.evaluate.keep import Keep
from lmmkit.evaluate.questions.answering import answer_questions, benchmark_questions, limited
from lmmkit.evaluate.task import Better, EvalTask, Figure, Line
from lmmkit.inference.chat_model import ChatModel
from lmmkit.majority import Majority
from lmmkit.plan.stage_plan import StagePlan
from lmmkit.progress import counted, working
from lmmkit.recipe import Control, Recipe


@dataclass(frozen=True)
class BenchmarkTask(EvalTask):
    """Scores a benchmark by its official rules. Figures: those of the benchmark; with controls also those of the
    probe. `section.files` is the folder that has the benchmark's folder."""

    @property
    def benchmark(self) -> Benchmark:
        """Returns the benchmark."""
        return BENCHMARKS[self.section.kind or self.name]()

    def problems(self, recipe: Recipe) -> list[Problem]:
        """Returns also a problem if there is no folder of official files."""
        where = recipe.where(f"evaluate.tasks.{self.name}.files")
        return [*super().problems(recipe), *self.file_problems(where, "Set `files` to the folder above it.")]

    def file_problems(self, where: str, fix: str) -> list[Problem]:
        """Returns a problem if there is no folder of official files. `where` and `fix`: how it is given."""
        title = f"{self.benchmark.title}: FILES/{self.benchmark.name}"
        if self.section.files is None:
            return [NO_FILES.at(where, got="no folder", title=title, fix=fix)]
        folder = self.folder
        return (
            [] if folder.is_dir() else [NO_FILES.at(where, got=f"no folder {folder}", title=title, fix=fix)]
        )

    @property
    def folder(self) -> Path:
        """Returns the folder of the official files."""
        return Path(self.section.files or ".") / self.benchmark.name

    @property
    def split(self) -> str:
        """Returns the split."""
        return self.section.split or self.benchmark.splits[0]

    @cached_property
    def items(self) -> Sequence[Item]:
        """Returns the items of the split. Raises `UserError` for files that are not as they were published."""
        with working(f"{self.name}: reading the official files"):
            return official_items(self.benchmark, self.folder, self.split)

    def input_problems(self) -> list[Problem]:
        """Returns what is wrong with the official files."""
        try:
            _ = self.items
        except UserError as error:
            return list(error.problems)
        return []

    def run(
        self, chat_model: ChatModel, samples: Sequence[Sample], *,
        controls: Iterable[Control] = (), baseline: Majority | None = None, keep: Keep | None = None,
    ) -> dict[str, Figure]:  # fmt: skip
        """Returns the figures. The items come from the official files, not from `samples`."""
        chat = chat_model.prepared.recipe.model.chat
        items = self.items
        asked = benchmark_questions(
            self.benchmark, items, task=self.name, split=self.split, template=chat.template,
            image_fit=chat.image_fit, system=chat.system or "", max_new_tokens=self.section.max_new_tokens,
        )  # fmt: skip
        asked = limited(asked, self.section.samples)
        check_image_files(asked.items, chat.image_fit, chat_model.prepared.dims.image)
        if keep is not None and asked.whole:
            # what a server would refuse is found before a question is asked
            self.benchmark.upload(items, {item.id: "" for item in items})
        controls = tuple(controls)
        return answer_questions(
            chat_model, asked, controls=controls, keep=keep, attention=bool(controls)
        ).figures

    def figures(self, plan: StagePlan) -> dict[str, Better]:
        """Returns the figure that papers report."""
        return {self.benchmark.headline: "higher"}

    def table(self, figures: Mapping[str, Figure]) -> list[Line]:
        """Returns the benchmark's table. Of the controls it has the headline only; results.json has all."""
        headline = self.benchmark.headline
        hidden = [
            name
            for name in figures
            for control in CONDITIONS
            if (base := name.partition("/")[0]).endswith(f"_{control}")
            and base.removesuffix(f"_{control}") in figures
            and not base.startswith(DIFFERENCES)
            and name != renamed(headline, control)
        ]
        return self.benchmark.table({name: f for name, f in figures.items() if name not in hidden})

    def facts(self, keep: Keep) -> dict[str, Any]:
        """Returns status and coverage."""
        return facts_in(keep.folder)


def check_image_files(items: Iterable[Item], image_fit: ImageFit, spec: ImageSpec) -> None:
    """Raises `UserError` with all images that the model cannot read. Reads their headers only."""
    problems: list[Problem] = []
    paths = dict.fromkeys(image for item in items for image in item.images)
    for path in counted("checking images", paths):
        try:
            check_image(Image(path), image_fit, spec)
        except UserError as error:
            problems += error.problems
    raise_all(problems)
