"""The questions that a report is about: one task, each run's answers to it, and pairs of runs on the same questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lmmkit.ablation.arms import is_loss
from lmmkit.errors import did_you_mean, raise_all
from lmmkit.errors.report import NO_COMMON_TASK, OTHER_QUESTIONS
from lmmkit.evaluate.answers.answers_file import HEADER, NAME, by_key, read_answers
from lmmkit.evaluate.answers.choose import OfOne
from lmmkit.evaluate.answers.groups import in_group, scored
from lmmkit.evaluate.answers.locate import task_folders
from lmmkit.evaluate.answers.schema import CONDITIONS, OWN
from lmmkit.evaluate.bootstrap import paired_difference
from lmmkit.evaluate.task import Figure
from lmmkit.progress import plural
from lmmkit.report.loaded_run import LoadedRun
from lmmkit.runs.files import finite, read_json, read_jsonl

ATTENTION = "attention.jsonl"
ACCURACY = "accuracy"
RIGHT = 0.5  # a score from here on counts as right where only right and wrong are distinguished


@dataclass(frozen=True, kw_only=True)
class RunAnswers:
    """Holds a run's answers to the task: by id in official order, each by condition. `header`: answers.json;
    `attention`: the lines of attention.jsonl by id."""

    answers: dict[str, OfOne]
    header: dict[str, Any]
    attention: dict[str, dict[str, Any]]

    @property
    def whole(self) -> bool:
        """Returns whether the file has answers with the own images."""
        return bool(self.answers)

    def look(self, id: str, field: str) -> float | None:
        """Returns a figure of the attention of an answer, if it was measured."""
        return finite(self.attention.get(id, {}).get(field))


@dataclass(frozen=True, kw_only=True)
class AskedRuns:
    """Holds the task of a report and the answers of all runs, in their order. `task` is None without any task.

    `figure`: the name of the task's headline in results.json.
    """

    runs: Sequence[LoadedRun]
    task: str | None
    figure: str = ACCURACY
    of: Sequence[RunAnswers]

    @cached_property
    def conditions(self) -> list[str]:
        """Returns the conditions with a headline in any run, the own images first."""
        return [c for c in CONDITIONS if any(self.headline(run, c) for run in self.runs)]

    @cached_property
    def kinds(self) -> list[str]:
        """Returns the groups of questions with figures of their own, in the order of the first run."""
        ahead = f"{self.figure}/"
        names = [name for run in self.runs for name in (run.names_of(self.task) if self.task else ())]
        return list(dict.fromkeys(name.removeprefix(ahead) for name in names if name.startswith(ahead)))

    @property
    def is_mean(self) -> bool:
        """Returns whether the headline is the mean of scores, so that two runs can be compared by question."""
        return self.figure == ACCURACY

    @property
    def in_shares(self) -> bool:
        """Returns whether all headlines are shares, which percent axes can show. The value of a term is none."""
        headline = f"{self.task}/{self.figure}"
        if any(run.recipe is not None and is_loss(run.recipe, headline) for run in self.runs):
            return False
        found = [self.headline(run, c) for run in self.runs for c in self.conditions]
        return all(0 <= figure.value <= 1 for figure in found if figure)

    def headline(self, run: LoadedRun, condition: str = OWN, kind: str | None = None) -> Figure | None:
        """Returns a run's headline in results.json, under a condition, for all questions or one type."""
        if self.task is None:
            return None
        return run.figure(self.task, self.figure_name(condition, kind))

    def figure_name(self, condition: str, kind: str | None) -> str:
        """Returns the name of a headline in results.json."""
        return self.figure + ("" if condition == OWN else f"_{condition}") + (f"/{kind}" if kind else "")

    def common(self, first: int, second: int, kind: str | None = None) -> Iterator[tuple[str, OfOne, OfOne]]:
        """Yields the questions that two runs were asked with the same prompt, and their answers."""
        a, b = self.of[first].answers, self.of[second].answers
        counts = in_group([each[OWN] for each in a.values()], kind) if kind else None
        for id, mine in a.items():
            other = b.get(id)
            if other is None or other[OWN].prompt_sha != mine[OWN].prompt_sha:
                continue
            if counts is None or counts(mine[OWN]):
                yield id, mine, other

    def difference(
        self,
        first: int,
        second: int,
        value: Callable[[RunAnswers, str], float | None],
        kind: str | None = None,
    ) -> Figure | None:
        """Returns the mean of the second run minus that of the first, with the interval of `lmmkit answers compare`.

        `value`: of a run's answers to the question with an id. None without a question that has both values.
        """
        pairs = [
            (value(self.of[first], id), value(self.of[second], id), mine[OWN].cluster or id)
            for id, mine, _ in self.common(first, second, kind)
        ]
        known = [(a, b, cluster) for a, b, cluster in pairs if a is not None and b is not None]
        if not known:
            return None
        a, b, clusters = zip(*known, strict=True)
        return paired_difference(b, a, clusters)


def score_of(condition: str) -> Callable[[RunAnswers, str], float | None]:
    """Returns the function that gives the score of an answer under a condition."""

    def score(run: RunAnswers, id: str) -> float | None:
        answers = run.answers[id]
        # a question without an image has one answer for all conditions
        found = answers.get(condition) or (answers[OWN] if not answers[OWN].images else None)
        return None if found is None else finite(found.score)

    return score


def kinds_of(answers: OfOne) -> list[str]:
    """Returns the groups of a question that have figures of their own: its type, and what its prior is."""
    return [str(group) for group in answers[OWN].groups.values()]


def ask_runs(runs: Sequence[LoadedRun], on: str | None = None) -> AskedRuns:
    """Returns the task that a report is about, and the answers to it. `on`: its name.

    Without a name it is the first task of the first run that most runs have answers of.

    Raises:
        UserError: a run without results of the task `on`, damaged files, or runs without a common question.
    """
    folders = [_folders(run) for run in runs]
    known = [list(run.results) for run in runs]
    if on is not None:
        raise_all(
            NO_COMMON_TASK.at(
                f"--on {on}", got=f"no such results in {run.name}", nearest=did_you_mean(on, names)
            )
            for run, names in zip(runs, known, strict=True)
            if on not in names
        )
    tasks = [on] if on else list(dict.fromkeys(n for names in known for n in names))
    with_answers = {task: sum(task in each for each in folders) for task in tasks}
    best = max(with_answers.values(), default=0)
    task = next((task for task in tasks if with_answers[task] == best and (best or on)), None)
    if task is None:
        task = next((t for t in tasks if any(run.figure(t, ACCURACY) for run in runs)), None)
    if task is None:
        return AskedRuns(runs=runs, task=None, of=[_read(None) for _ in runs])
    names = next((found for run in runs if (found := run.names_of(task))), [ACCURACY])
    asked = AskedRuns(
        runs=runs, task=task, figure=ACCURACY if ACCURACY in names else names[0],
        of=[_read(each.get(task)) for each in folders],
    )  # fmt: skip
    raise_all(_strangers(asked))
    return asked


def _folders(run: LoadedRun) -> dict[str, Path]:
    return task_folders(run.folder.path) if run.recipe is not None else {}


def _read(folder: Path | None) -> RunAnswers:
    if folder is None:
        return RunAnswers(answers={}, header={}, attention={})
    found: dict[str, OfOne] = {}
    answers = by_key(read_answers(folder / NAME), str(folder / NAME)).values()
    for answer in answers:
        found.setdefault(answer.id, {})[answer.condition] = answer
    whole = {id: answers for id, answers in found.items() if OWN in answers}
    header = read_json(folder / HEADER) if (folder / HEADER).is_file() else {}
    attention = {str(line.get("id")): line for line in read_jsonl(folder / ATTENTION)}
    return RunAnswers(answers=whole, header=header, attention=attention)


def _strangers(asked: AskedRuns):
    """Yields a problem for each run that has answers, but none to a question of the first run with answers."""
    with_answers = [i for i, run in enumerate(asked.of) if run.whole]
    for i in with_answers[1:]:
        if next(asked.common(with_answers[0], i), None) is None:
            first = asked.runs[with_answers[0]].name
            got = f"{plural(len(asked.of[i].answers), 'question')} of task {asked.task}, none of which {first} answered"
            yield OTHER_QUESTIONS.at(str(asked.runs[i].folder.path), got=got, first=first)


def not_adding_up(asked: AskedRuns) -> list[str]:
    """Returns in words where the answers do not add up to results.json, of tasks whose headline is a mean score."""
    found = []
    for run, answers in zip(asked.runs, asked.of, strict=True) if asked.is_mean else ():
        if not answers.whole or answers.header.get("benchmark", "questions") != "questions":
            continue
        kept = [answer for of_one in answers.answers.values() for answer in of_one.values()]
        for condition in asked.conditions:
            for kind in (None, *asked.kinds):
                figure = asked.headline(run, condition, kind)
                if figure is None:
                    continue
                counted = scored(kept, asked.figure_name(condition, kind)) or {}
                scores = [answer.score or 0.0 for answer in counted.values()]
                mean = sum(scores) / len(scores) if scores else None
                if mean is None or len(scores) != figure.n or abs(mean - figure.value) > 1e-6:
                    found.append(f"{run.name}, {kind or 'all questions'}, {condition} image")
    return found
