"""The arms of a grid: the base and every variant, each as a recipe. Needs no data and no torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmmkit.ablation.grid import BASE, MOST, GridFile
from lmmkit.errors import Problem, UserError, did_you_mean, raise_all
from lmmkit.errors.ablation import BRANCH, EQUAL_VARIANTS, NO_CHANGE, NO_MEASURE
from lmmkit.evaluate.answers.probe import DIFFERENCES
from lmmkit.evaluate.answers.schema import OWN
from lmmkit.evaluate.benchmarks.benchmark import ATTENTION
from lmmkit.recipe import EmptyImage, Recipe, Task, flow_text, read_recipe, to_mapping
from lmmkit.runs.files import is_file

_Change = tuple[str, str, Any]  # the key of the grid, the key of the recipe, the value


@dataclass(frozen=True)
class Arm:
    """Holds the base or a variant. `where`: the grid's key of it. `recipe`: without root, with the file's own seed."""

    name: str
    where: str
    recipe: Recipe


def read_arms(file: GridFile) -> list[Arm]:
    """Returns the arms, the base first. Raises `UserError` with the problems of all recipes and measures."""
    arms, problems = [], list(file.problems)
    known = {problem.where for problem in problems}
    for name, where, recipe, changes in _asked(file):
        if not is_file(file.recipe_path(recipe)):
            continue  # `read_grid` has found this
        try:
            arms.append(Arm(name, where, _read(file, recipe, changes)))
        except UserError as error:  # a value that the grid may not have is a null in the recipe
            problems += [problem for problem in error.problems if problem.where not in known]
    found = [*_branch_problems(file, arms), *_measure_problems(file, arms)] if arms else []
    if arms and arms[0].name == BASE:
        found += equal_problems(_trainings(arms))
    problems += [replace(problem, where=file.places.where(problem.where)) for problem in found]
    raise_all(dict.fromkeys(problems))
    return arms


def equal_problems(trainings: Sequence[tuple[Arm, Any]]) -> Iterator[Problem]:
    """Yields a problem for each variant that trains like the base or like an earlier variant.

    `trainings`: the arms, the base first, and what is compared of each.
    """
    (_, base), *others = trainings
    for i, (arm, training) in enumerate(others):
        name, where = arm.name, arm.where
        if training == base:
            yield NO_CHANGE.at(where, got=f"`{name}`, which trains like the base")
            continue
        same = next((earlier.name for earlier, other in others[:i] if other == training), None)
        if same is not None:
            yield EQUAL_VARIANTS.at(where, got=f"`{name}`, which trains like `{same}`")


def _trainings(arms: Sequence[Arm]) -> list[tuple[Arm, Any]]:
    """Returns what the recipe of each arm sets for training, but for the seed, which the grid sets. The order of keys
    counts, as sums of floats depend on it."""
    found = []
    for arm in arms:
        plain = to_mapping(arm.recipe)
        kept = {key: part for key, part in plain.items() if key not in ("evaluate", "output", "seed")}
        found.append((arm, flow_text(kept)))
    return found


def _asked(file: GridFile) -> Iterator[tuple[str, str, str, list[_Change]]]:
    """Yields name, key of the grid, recipe and changes of each arm."""
    grid = file.grid
    common: list[_Change] = [(f"set.{key}", key, value) for key, value in grid.set.items()]
    yield BASE, "base", grid.base, common
    for name, variant in grid.variants.items():
        where = f"variants.{name}"
        own = [*common, *((f"{where}.set.{key}", key, value) for key, value in variant.set.items())]
        if variant.combinations > MOST:
            continue  # `read_grid` has found this
        keys = list(variant.product)
        for values in itertools.product(*variant.product.values()):
            label = "/".join([name, *map(flow_text, values)])
            further = [
                (f"{where}.product.{key}", key, value) for key, value in zip(keys, values, strict=True)
            ]
            yield label, where, variant.recipe or grid.base, own + further


def _read(file: GridFile, recipe: str, changes: Sequence[_Change]) -> Recipe:
    """Reads a recipe with changes. Problems of a change are reported at its line of the grid."""
    overrides: dict[str, str] = {}
    for where, key, value in changes:
        text = f"{key}={flow_text(value)}"
        overrides.pop(text, None)  # the last one of a key counts, so it must not keep an earlier place
        overrides[text] = where
    try:
        return read_recipe(file.recipe_path(recipe), overrides=list(overrides))
    except UserError as error:
        raise UserError(_placed(problem, overrides, file) for problem in error.problems) from None


def _placed(problem: Problem, overrides: Mapping[str, str], file: GridFile) -> Problem:
    for override, where in overrides.items():
        if problem.where.startswith(f"--set {override}"):
            rest = problem.where.removeprefix(f"--set {override}")
            return replace(problem, where=file.places.where(where) + rest)
    return problem


def _branch_problems(file: GridFile, arms: Sequence[Arm]) -> Iterator[Problem]:
    if (branch := file.grid.branch) is None:
        return
    lacking = [arm for arm in arms if branch.after not in list(arm.recipe.stages)[:-1]]
    if lacking:
        nearest = did_you_mean(branch.after, list(lacking[0].recipe.stages)[:-1])
        yield BRANCH.at("branch.after", got=f"`{branch.after}`, not of `{lacking[0].name}`", nearest=nearest)


def _measure_problems(file: GridFile, arms: Sequence[Arm]) -> Iterator[Problem]:
    """Yields a problem for each measure that no arm has; the first one is needed in all."""
    for i, (name, path) in enumerate(file.grid.measures.items()):
        lacking = [arm for arm in arms if not has_figure(arm.recipe, path)]
        if lacking and (i == 0 or len(lacking) == len(arms)):
            known = [each for arm in arms for each in _figures(arm.recipe)]
            yield NO_MEASURE.at(
                f"measures.{name}",
                got=f"`{path}`, not of `{lacking[0].name}`",
                nearest=did_you_mean(path, known),
            )


def has_figure(recipe: Recipe, path: str) -> bool:
    """Returns whether the evaluation of a recipe can give the figure TASK/FIGURE. The details of a figure, such as
    question types, and the figures of benchmarks depend on the data."""
    task, _, figure = path.partition("/")
    tasks = recipe.evaluate.tasks if recipe.evaluate is not None else {}
    if task not in tasks or not all(path.split("/")):
        return False
    known = _figures_of(recipe, task, tasks[task])
    return known is None or figure.partition("/")[0] in known


def is_loss(recipe: Recipe, path: str) -> bool:
    """Returns whether a figure, TASK/FIGURE, is the value of a term, which is no share even where it is below 1."""
    name, _, figure = path.partition("/")
    task = recipe.evaluate.tasks.get(name) if recipe.evaluate is not None else None
    return task is not None and (task.kind or name) == "terms" and "/" not in figure


def _figures(recipe: Recipe) -> list[str]:
    tasks = recipe.evaluate.tasks if recipe.evaluate is not None else {}
    return [
        f"{name}/{each}" for name, task in tasks.items() for each in _figures_of(recipe, name, task) or ()
    ]


def _figures_of(recipe: Recipe, name: str, task: Task) -> list[str] | None:
    """Returns the first parts of the figures of a task; None if they are not known in advance."""
    kind = task.kind or name
    stage = recipe.stages.get(task.stage or list(recipe.stages)[-1])
    losses = list(stage.losses) if stage is not None else []
    asked = recipe.evaluate.controls if recipe.evaluate is not None else ()
    controls = ["empty" if isinstance(each, EmptyImage) else each for each in asked]
    if kind == "terms":
        return list(dict.fromkeys(("next_token", *losses)))
    if kind == "restore":
        return [each for each in losses if each != "next_token"]
    if kind == "questions":
        asked_for = {OWN, *controls}
        gains = [name for name, pair in DIFFERENCES.items() if asked_for.issuperset(pair)]
        of_controls = [f"{figure}_{each}" for each in controls for figure in ("accuracy", "changed")]
        return ["accuracy", *of_controls, *gains, *(ATTENTION if controls else ())]
    return None
