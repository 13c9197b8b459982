"""The evaluation of a run: runs the tasks of its recipe and writes `results.json`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from lmmkit.api.sample import Sample
from lmmkit.data.images import ReadImage
from lmmkit.data.sources.records import Records, too_many
from lmmkit.errors import Problem, UserError, did_you_mean, raise_all
from lmmkit.errors.plan import NO_TASK, NO_TASKS
from lmmkit.evaluate.controls import controls_of
from lmmkit.evaluate.keep import Keep, OneProcess, Sharing
from lmmkit.evaluate.kinds import task_problems, tasks_of
from lmmkit.evaluate.questions.answering import model_facts
from lmmkit.evaluate.questions.questions_task import baseline_of
from lmmkit.evaluate.task import EvalTask, Figure
from lmmkit.inference.chat_model import ChatModel
from lmmkit.inference.load import find_model_folder, load
from lmmkit.majority import Majority
from lmmkit.plan.prepare import open_sources
from lmmkit.progress import counted, moving, plural, working
from lmmkit.recipe import Control, Recipe
from lmmkit.runs.files import read_json, write_json_atomic
from lmmkit.runs.run_folder import RunFolder

ONE = OneProcess()
ROUND = 8  # records that a rank reads between two exchanges with the others


@dataclass(frozen=True)
class TaskResult:
    """Holds the figures of one task, the seconds it took, and what else `results.json` holds of it."""

    task: EvalTask
    figures: dict[str, Figure]
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Returns the entry for `results.json`: each figure by its name, the seconds, and the facts."""
        figures = {name: asdict(figure) for name, figure in self.figures.items()}
        return {**figures, "seconds": self.seconds, **self.facts}


def evaluate(
    run: RunFolder, recipe: Recipe, *, only: Sequence[str] = (), controls: Sequence[Control] | None = None,
    stage: str | None = None, trust_files: bool = False, dtype: torch.dtype = torch.float32,
    notify: Callable[[str], None] = lambda text: None,
    benchmarks: Mapping[str, EvalTask] = MappingProxyType({}), out: Path | None = None, ranks: Sharing = ONE,
    alone: int = 0,
    show: Callable[[dict[str, TaskResult]], None] = lambda results: None,
) -> dict[str, TaskResult]:  # fmt: skip
    """Runs the recipe's tasks on the run's models and merges them into its `results.json`.

    Args:
        run: a run with at least one finished stage.
        recipe: the run's recipe, its root set.
        only: names of tasks; all by default.
        controls: replace the controls in the recipe.
        stage: the stage whose model answers, instead of the stage in each task; such results are not written.
        trust_files: run plugins from local files.
        dtype: of weights and computation.
        notify: called with a line of text as the evaluation proceeds.
        benchmarks: tasks that the recipe does not have, by name. Given these, `only` may be empty.
        out: the folder of the answers and of `results.json`, instead of the run.
        ranks: the processes that share the questions. The first one writes.
        alone: how many questions of each task are asked again, each alone, to compare their answers.
        show: called with the results at the end, also of an evaluation that an error ends.

    Returns:
        the results of the tasks that were run, by name.
    """
    own = bool(only) or not benchmarks
    raise_all(_problems(recipe, only) if own else [])
    if controls is None:
        controls = controls_of(recipe)
    tasks = (tasks_of(recipe, only) if own else {}) | dict(benchmarks)
    raise_all(problem for task in tasks.values() for problem in task.input_problems())
    compared = any(task.needs_baseline for task in tasks.values())
    training = sorted(list(recipe.stages.values())[-1].data) if compared else []

    @cache
    def opened(folder: Path) -> tuple[ChatModel, dict[str, Any]]:
        model = load(folder, dtype=dtype, trust_files=trust_files, plugins="all", root=recipe.root)
        return model, model_facts(folder)

    asked = {task.section.data for task in tasks.values() if task.section.data is not None}
    to = None
    if ranks.rank == 0 and (stage is None or out is not None):
        to = run.results if out is None else out / "results.json"
    with _kept(to, show) as kept, working("evaluation", len(tasks)) as move:
        sources = open_sources(recipe, sorted({*training, *asked}))
        baseline = _baseline({name: sources[name] for name in training}, notify)
        for done, (name, task) in enumerate(tasks.items()):
            folder = find_model_folder(run.path, stage or task.section.stage)
            chat_model, model = opened(folder)
            began = time.perf_counter()
            samples: Sequence[Sample] = ()
            if (source := task.section.data) is not None:
                samples = readable(sources[source], task.section.samples, chat_model.reader, notify)
                notify(f"{name}: {plural(len(samples), 'sample')} of {source}")
            answers = out / name if out is not None else run.answers(folder.name, name)
            keep = Keep(folder=answers, model=model, ranks=ranks, alone=alone)
            with moving(move, done, done + 1):
                figures = task.run(chat_model, samples, controls=controls, baseline=baseline, keep=keep)
            kept.add(name, TaskResult(task, figures, time.perf_counter() - began, _facts(task, keep)))
    return kept.results


def _baseline(training: Mapping[str, Records], notify: Callable[[str], None]) -> Majority:
    """Returns the majority baseline of the answers of training sources; without any it knows no answer."""
    if training:
        notify(f"majority baseline: reading {plural(sum(map(len, training.values())), 'training record')}")
    return baseline_of(
        sample
        for name, records in training.items()
        for sample in counted(f"{name}: training answers", records, unit="records")
    )


@dataclass
class _Results:
    """Adds the result of each task to a `results.json` as the task ends. `path`: None to write none."""

    path: Path | None
    results: dict[str, TaskResult] = field(default_factory=dict)

    def add(self, name: str, result: TaskResult) -> None:
        """Keeps and writes the result of a task."""
        self.results[name] = result
        if self.path is not None:
            add_results({name: result}, self.path)


@contextmanager
def _kept(path: Path | None, show: Callable[[dict[str, TaskResult]], None]) -> Iterator[_Results]:
    """Keeps results as they come, and shows them at the end, also if an error ends the block: none is lost."""
    kept = _Results(path)
    try:
        yield kept
    finally:
        if kept.results:
            show(kept.results)


def add_results(results: Mapping[str, TaskResult], path: Path) -> None:
    """Adds results to a `results.json`; replaces those of the same tasks."""
    before = read_json(path) if path.is_file() else {}
    write_json_atomic(path, {**before, **{name: result.as_json() for name, result in results.items()}})


def evaluate_model(
    path: Path, benchmarks: Mapping[str, EvalTask], *, out: Path, controls: Sequence[Control] = (),
    dtype: torch.dtype = torch.float32, trust_files: bool = False, ranks: Sharing = ONE, alone: int = 0,
    notify: Callable[[str], None] = lambda text: None,
    show: Callable[[dict[str, TaskResult]], None] = lambda results: None,
) -> dict[str, TaskResult]:  # fmt: skip
    """Runs benchmarks on a model folder that is not part of a run; adds to OUT/results.json.

    The arguments are those of `evaluate`. `path`: any folder that `load` opens.
    """
    raise_all(problem for task in benchmarks.values() for problem in task.input_problems())
    to = out / "results.json" if ranks.rank == 0 else None
    with _kept(to, show) as kept, working("evaluation", len(benchmarks)) as move:
        chat_model, model = load(path, dtype=dtype, trust_files=trust_files), model_facts(path)
        for done, (name, task) in enumerate(benchmarks.items()):
            notify(f"{name}: answers go to {out / name}")
            began = time.perf_counter()
            keep = Keep(folder=out / name, model=model, ranks=ranks, alone=alone)
            with moving(move, done, done + 1):
                figures = task.run(chat_model, (), controls=controls, keep=keep)
            kept.add(name, TaskResult(task, figures, time.perf_counter() - began, _facts(task, keep)))
    return kept.results


def _facts(task: EvalTask, keep: Keep) -> dict[str, Any]:
    """Returns the facts of a task on the rank that writes them."""
    return task.facts(keep) if keep.ranks.rank == 0 else {}


def _problems(recipe: Recipe, only: Sequence[str]) -> list[Problem]:
    """Returns the problems of the recipe's tasks, and of the names in `only`."""
    tasks = recipe.evaluate.tasks if recipe.evaluate is not None else {}
    if not tasks:
        return [NO_TASKS.at(recipe.where("evaluate"), got="no tasks")]
    unknown = [name for name in only if name not in tasks]
    return [
        *(NO_TASK.at(f"--on {name}", got=f"`{name}`", nearest=did_you_mean(name, tasks)) for name in unknown),
        *task_problems(recipe),
    ]


def readable(
    records: Records, n: int | str, reader: ReadImage, notify: Callable[[str], None], *,
    share: tuple[int, int] = (0, 1), gather: Callable[[list], list[list]] = lambda found: [found],
    poll: Callable[[], None] = lambda: None,
) -> list[Sample]:  # fmt: skip
    """Returns the samples of the first `n` records with readable images, or of `all` such records.

    Reads every image once here, so that a bad image does not end the evaluation later.

    Args:
        records: the records to choose from.
        n: how many, or `all`.
        reader: reads an image.
        notify: called with a line of text for each record that is skipped.
        share: (rank, world): each rank reads its share; no rank keeps a record that one cannot read.
        gather: returns the values of all ranks, by rank.
        poll: called every few records, equally often on every rank; may raise to end the work.

    Raises:
        UserError: more unreadable records than the source's `bad_records` allows, or no readable one.
    """
    rank, world = share
    kept: list[int] = []
    bad: dict[int, Problem] = {}
    total = len(records) if n == "all" else min(int(n), len(records))
    with working("reading images", total, unit="samples") as move:
        for start in range(0, len(records), ROUND * world):
            if n != "all" and len(kept) >= int(n):
                break
            poll()
            numbers = range(start, min(start + ROUND * world, len(records)))
            found = [
                [i, asdict(p[0])] for i in numbers[rank::world] if (p := _unreadable(records, i, reader))
            ]
            bad |= {i: Problem(**problem) for of_rank in gather(found) for i, problem in of_rank}
            kept += [i for i in numbers if i not in bad]
            move(len(kept))
    if n != "all" and len(kept) >= int(n):
        kept = kept[: int(n)]
        bad = {i: problem for i, problem in bad.items() if i < kept[-1]}
    problems = [bad[i] for i in sorted(bad)]
    raise_all(too_many(records, problems))
    if problems and not kept:
        raise UserError(problems)
    for problem in problems:
        notify(f"passed over {problem.where}: {problem.got}")
    return [records[i] for i in kept]


def _unreadable(records: Records, i: int, reader: ReadImage) -> list[Problem]:
    """Returns the problems of the images in record i."""
    sample, found = records[i], []
    for image in sample.images:
        try:
            reader(image, sample.image_fit)
        except UserError as error:
            found += [replace(p, where=f"{records.where(i)}, {p.where}") for p in error.problems]
    return found
