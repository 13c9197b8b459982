"""Reads what the runs of a grid have given, and refuses results that do not belong together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from lmmkit.ablation.planned_runs import GridRun
from lmmkit.ablation.store import Cost, Store
from lmmkit.errors import Problem, Tried, raise_all, raise_together
from lmmkit.errors.ablation import ABLATION_ANSWERS, GRID_OTHER_QUESTIONS
from lmmkit.evaluate.answers.answers_file import HEADER, NAME, by_key, read_answers
from lmmkit.evaluate.answers.groups import scored
from lmmkit.evaluate.answers.locate import task_folders
from lmmkit.evaluate.answers.schema import Answer
from lmmkit.runs.files import finite, read_json

CLOSE = 1e-6  # between the mean of kept scores and the figure of results.json


@dataclass(frozen=True)
class FinishedRun:
    """Holds a run of a grid with its results. `costs`: of its stages, shared ones too."""

    run: GridRun
    folder: Path
    results: Mapping[str, Any]
    costs: tuple[Cost, ...]

    @property
    def pair(self) -> tuple[str, int]:
        """Returns what a run shares with the run of the base that it is compared with."""
        return self.run.root, self.run.seed

    def value(self, measure: str) -> float | None:
        """Returns the value of the figure TASK/FIGURE; None if the run has none."""
        found = self.figure(measure)
        return None if found is None else found[0]

    def figure(self, measure: str) -> tuple[float, int | None] | None:
        """Returns the value of a figure, and of how many items it is, if that is known; None if the run has none."""
        task, _, name = measure.partition("/")
        figures = self.results.get(task)
        found = figures.get(name) if isinstance(figures, dict) else None
        if not isinstance(found, dict) or (value := finite(found.get("value"))) is None:
            return None
        n = found.get("n")
        return value, n if type(n) is int else None

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Returns the folders of the tasks that have answers."""
        return task_folders(self.folder)

    @cached_property
    def headers(self) -> dict[str, dict[str, Any]]:
        """Returns the content of `answers.json` of each task that has answers; {} without the file."""
        return {
            task: read_json(folder / HEADER) if (folder / HEADER).is_file() else {}
            for task, folder in self.folders.items()
        }

    def answers(self, task: str) -> list[Answer]:
        """Returns the kept answers to a task; [] if it asks no questions. Raises `UserError` for damaged ones, and for
        two to one question."""
        if task not in self.folders:
            return []
        path = self.folders[task] / NAME
        return list(by_key(read_answers(path), str(path)).values())

    def scores(self, measure: str) -> dict[str, Answer] | None:
        """Returns the scored answers, by question, that a figure is the mean of; None for other figures."""
        task, _, figure = measure.partition("/")
        return scored(self.answers(task), figure) if task in self.folders else None


def read_finished(store: Store, runs: Sequence[GridRun]) -> list[FinishedRun]:
    """Returns the runs that are trained and evaluated, in order, without changes of the files.

    Raises `UserError` with the problems of all runs: damaged files, other data, answers to other questions, and answers
    that do not add up.
    """
    read = [Tried(lambda run=run: _read(store, run)) for run in runs]
    found = [each.value for each in read if each.error is None and each.value is not None]
    checks = [
        Tried(lambda run=run, task=task: raise_all(islice(_wrong_accuracies(run, task), 1)))
        for run in found
        for task in run.folders
    ]
    together = Tried(lambda: raise_all([*_without_answers(found), *_other_questions(found)]))
    raise_together([*read, together, *checks])
    return found


def _read(store: Store, run: GridRun) -> FinishedRun | None:
    """Returns a run with its results; None if it is not finished."""
    if not all(map(store.is_trained, run.stages)) or store.missing_tasks(run):
        return None
    store.require_own_data(run)
    folder = store.run(run.key)
    return FinishedRun(run, folder.path, folder.read_results(), tuple(map(store.cost, run.stages)))


def _wrong_accuracies(run: FinishedRun, task: str) -> Iterator[Problem]:
    """Yields a problem for each accuracy of a task that is not the mean of its kept scores. Of a benchmark only the
    accuracy of all questions is known to be a mean, and not of how many scores."""
    folder, figures = run.folders[task], run.results.get(task)
    is_benchmark = run.headers[task].get("benchmark", "questions") != "questions"
    answers = run.answers(task)
    for name in ["accuracy"] if is_benchmark else figures if isinstance(figures, dict) else ():
        figure, found = run.figure(f"{task}/{name}"), scored(answers, name)
        if figure is None or found is None or (is_benchmark and not found):
            continue
        value, n = figure
        mean = sum(answer.score or 0.0 for answer in found.values()) / max(1, len(found))
        other_number = n is not None and n != len(found) and not is_benchmark
        if other_number or abs(mean - value) > CLOSE:
            got = f"{name}: a mean score of {mean:.4f} of {len(found):,} answers"
            of = "" if n is None else f" of {n:,}"
            yield ABLATION_ANSWERS.at(str(folder / NAME), got=got, value=f"{value:.4f}{of}")


def _without_answers(runs: Sequence[FinishedRun]) -> Iterator[Problem]:
    """Yields a problem for each task with figures of answers that are not there."""
    for run in runs:
        for task, figures in run.results.items():
            if isinstance(figures, dict) and "coverage" in figures and task not in run.folders:
                where, value = f"{run.folder}: {task}", f"the answers to {task}"
                yield ABLATION_ANSWERS.at(where, got="no kept answers", value=value)


def _other_questions(runs: Sequence[FinishedRun]) -> list[Problem]:
    """Returns a problem for each run whose questions differ from those of the first run on the same root."""
    problems, first = [], dict[tuple[str, str], tuple[str, Path]]()
    for run in runs:
        for task, folder in run.folders.items():
            asked = run.headers[task].get("data_sha256")
            if asked is None:
                got = f"no {HEADER} with the hash of its questions"
                problems.append(GRID_OTHER_QUESTIONS.at(str(folder), got=got, other="the grid"))
                continue
            figure = run.figure(f"{task}/accuracy")
            number = "" if figure is None or figure[1] is None else f"{figure[1]:,} "
            own = f"{number}questions with the hash {asked}"
            known, other = first.setdefault((run.run.root, task), (own, folder))
            if own != known:
                problems.append(GRID_OTHER_QUESTIONS.at(str(folder), got=own, other=f"{other}: {known}"))
    return problems
