"""Reads run folders for a report: what is there, and in words what is missing."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.errors.report import SAME_RUN
from lmmkit.evaluate.task import Figure
from lmmkit.recipe import Recipe, read_recipe
from lmmkit.report.wording import ends_of, in_words, shown_name
from lmmkit.runs.files import finite, read_json, read_jsonl
from lmmkit.runs.run_folder import RunFolder
from lmmkit.runs.run_lock import is_locked
from lmmkit.runs.sessions import cpu_seconds_in, sessions_in

DRAWN = 6  # runs with a column or a colour of their own: by type, as curves, samples, environment


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """Holds the files of a run.

    `facts`: run.json. `steps`: the records of metrics.jsonl with a loss; `validations`: those without. `unfinished`:
    in words why the run is not complete, or "". `missing`: in words, each part of the page that lacks its file.
    """

    name: str
    folder: RunFolder
    facts: dict[str, Any]
    recipe: Recipe | None
    plan: str
    steps: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    anomalies: list[dict[str, Any]]
    results: dict[str, Any]
    unfinished: str = ""
    missing: tuple[str, ...] = ()

    def figure(self, task: str, name: str) -> Figure | None:
        """Returns a figure of results.json; None if it is not there."""
        found = self.results.get(task)
        return figure_of(found.get(name)) if isinstance(found, dict) else None

    def names_of(self, task: str) -> list[str]:
        """Returns the names of a task's figures."""
        found = self.results.get(task)
        return [name for name in found if self.figure(task, name)] if isinstance(found, dict) else []

    def total(self, key: str) -> float:
        """Returns the sum of a figure over all steps, of which one in `every` is logged."""
        return self.every * running_sums(self.steps, key)[-1] if self.steps else 0.0

    @property
    def every(self) -> int:
        """Returns how many steps there are to a logged one."""
        return self.recipe.output.log_every if self.recipe is not None else 1

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """Returns the sessions of run.json."""
        return sessions_in(self.facts)

    @property
    def cpu_seconds(self) -> float | None:
        """Returns the CPU seconds of all sessions; None if one is not known."""
        return cpu_seconds_in(self.facts)


def figure_of(value: object) -> Figure | None:
    """Returns the figure in a value of results.json; None for other values."""
    if not isinstance(value, dict) or finite(value.get("value")) is None or finite(value.get("n")) is None:
        return None
    low, high = ends_of(value)
    return Figure(
        value=float(value["value"]), low=low, high=high, chance=finite(value.get("chance")), n=int(value["n"])
    )  # fmt: skip


def running_sums(steps: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Returns the sums of a figure up to each logged step; at most what a float can hold."""
    most = sys.float_info.max / 1e6
    return list(accumulate((finite(s.get(key)) or 0.0 for s in steps), lambda a, b: min(a + b, most)))


def load_runs(paths: Sequence[Path]) -> list[LoadedRun]:
    """Returns the runs, with names that differ. Raises `UserError` with the problems of all of them."""
    problems: list[Problem] = []
    found: list[LoadedRun] = []
    places = [path.resolve() for path in paths]
    problems += [
        SAME_RUN.at(str(paths[i]), got=f"{paths[places.index(place)]} once more")
        for i, place in enumerate(places)
        if place in places[:i]
    ]
    for path in dict.fromkeys(places):
        try:
            found.append(_load(path))
        except UserError as error:
            problems += error.problems
    raise_all(problems)
    names = _names([run.folder.path for run in found])
    return [replace(run, name=shown_name(name)) for run, name in zip(found, names, strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of paths that differ from each other."""
    depth = [1] * len(paths)
    while True:
        names = ["/".join(path.parts[-n:]) for path, n in zip(paths, depth, strict=True)]
        count = Counter(names)
        longer = [
            i for i, name in enumerate(names) if count[name] > 1 and depth[i] < len(paths[i].parts)
        ]  # fmt: skip
        if not longer:
            return names
        for i in longer:
            depth[i] += 1


def _load(path: Path) -> LoadedRun:
    """Returns one run. Raises `UserError` for a folder that is no run, and for all its damaged files."""
    folder = RunFolder.open(path)
    problems: list[Problem] = []

    def read(what, otherwise):
        try:
            return what()
        except UserError as error:
            problems.extend(error.problems)
            return otherwise

    facts = read(lambda: read_json(folder.run_json), {})
    recipe = read(lambda: read_recipe(folder.resolved), None) if folder.resolved.is_file() else None
    records = read(folder.read_metrics, [])
    anomalies = read(lambda: read_jsonl(folder.anomalies), [])
    results = read(folder.read_results, {}) if folder.results.is_file() else {}
    plan = folder.plan.read_text(encoding="utf-8", errors="replace") if folder.plan.is_file() else ""
    raise_all(problems)
    records = [each for each in records if finite(each.get("step")) is not None]
    steps = [each for each in records if "loss" in each]
    absent = {
        "no logged steps (metrics.jsonl)": not steps,
        "no results (results.json; `lmmkit eval` writes it)": not results,
        "no plan (plan.txt)": not plan,
        "no recipe (recipe.resolved.yaml)": recipe is None,
    }
    return LoadedRun(
        name=path.name, folder=folder, facts=facts, recipe=recipe, plan=plan, steps=steps,
        validations=[each for each in records if "loss" not in each], anomalies=anomalies, results=results,
        unfinished=_unfinished(folder, recipe, steps), missing=tuple(text for text, lacks in absent.items() if lacks),
    )  # fmt: skip


def _unfinished(folder: RunFolder, recipe: Recipe | None, steps: Sequence[dict[str, Any]]) -> str:
    """Returns why a run is not complete; "" if the model of its last stage is there and no process trains it."""
    at = f"at step {int(steps[-1]['step']):,}" if steps else "before its first step"
    if is_locked(folder):
        return f"is still training, {at}"
    left: list[str] = []
    for name in recipe.stages if recipe else ():  # the model of an earlier stage may have been removed
        left = [] if (folder.model(name) / "config.json").is_file() else [*left, name]
    return f"stopped {at}, without a model of {in_words(left)}" if left else ""
