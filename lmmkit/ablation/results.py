"""Reads what the runs of a grid have given, and refuses results that do not belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lmmkit.ablation.planned_runs import GridRun
from lmmkit.ablation.store import Cost, Store
from lmmkit.errors import Problem, raise_all
from lmmkit.errors.ablation import ABLATION_ANSWERS, GRID_OTHER_QUESTIONS
from lmmkit.evaluate.answers.answers_file import HEADER, NAME, read_answers
from lmmkit.evaluate.answers.locate import task_folders
from lmmkit.evaluate.answers.schema import CONDITIONS, OWN, Answer
from lmmkit.runs.files import read_json

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
        task, _, figure = measure.partition("/")
        found = self.results.get(task, {}).get(figure)
        value = found.get("value") if isinstance(found, dict) else None
        return None if value is None else float(value)

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Returns the folders of the tasks that have answers."""
        return task_folders(self.folder)

    def answers(self, task: str) -> list[Answer]:
        """Returns the kept answers to a task; [] if it asks no questions."""
        return read_answers(self.folders[task] / NAME) if task in self.folders else []

    def scores(self, measure: str) -> dict[str, Answer] | None:
        """Returns the scored answers, by question, that a figure is the mean of; None for other figures."""
        task, _, figure = measure.partition("/")
        name, _, detail = figure.partition("/")
        condition = name.removeprefix("accuracy_") if name != "accuracy" else OWN
        if condition not in CONDITIONS or task not in self.folders:
            return None
        return {
            answer.id: answer
            for answer in self.answers(task)
            if answer.condition == condition and answer.score is not None
            and (not detail or detail in answer.groups.values())
        }  # fmt: skip


def read_finished(store: Store, runs: Sequence[GridRun]) -> list[FinishedRun]:
    """Returns the runs that are trained and evaluated, in order, without changes of the files.

    Raises `UserError` for runs on other data, answers to other questions, and answers that do not add up.
    """
    found = []
    for run in runs:
        if all(store.is_trained(stage) for stage in run.stages) and not store.missing_tasks(run):
            store.require_own_data(run)
            folder = store.run(run.key)
            costs = tuple(store.cost(stage) for stage in run.stages)
            found.append(FinishedRun(run, folder.path, folder.read_results(), costs))
    raise_all([*_other_questions(found), *(p for each in found for p in _sums(each))])
    return found


def _sums(run: FinishedRun) -> list[Problem]:
    """Returns a problem for each accuracy that is not the mean of the kept scores."""
    problems = []
    for task in run.folders:
        measure = f"{task}/accuracy"
        value, scored = run.value(measure), run.scores(measure)
        if value is None or not scored:
            continue
        mean = sum(answer.score or 0.0 for answer in scored.values()) / len(scored)
        if abs(mean - value) > CLOSE:
            got = f"a mean score of {mean:.4f} of {len(scored):,} answers"
            problems.append(ABLATION_ANSWERS.at(str(run.folders[task] / NAME), got=got, value=f"{value:.4f}"))
    return problems


def _other_questions(runs: Sequence[FinishedRun]) -> list[Problem]:
    """Returns a problem for each run whose questions differ from those of the first run on the same root."""
    problems, first = [], dict[tuple[str, str], tuple[Any, Path]]()
    for run in runs:
        for task, folder in run.folders.items():
            if not (folder / HEADER).is_file():
                continue
            asked = read_json(folder / HEADER).get("data_sha256")
            known, other = first.setdefault((run.run.root, task), (asked, folder))
            if asked != known:
                problems.append(
                    GRID_OTHER_QUESTIONS.at(
                        str(folder), got=f"questions with the hash {asked}", other=f"{other}: {known}"
                    )
                )
    return problems
