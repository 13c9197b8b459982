"""Finds the problems in a recipe's `evaluate` section: before a run starts, and before an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from lmmkit.errors import Problem, did_you_mean
from lmmkit.errors.plan import FILES, NO_KIND, NO_STAGE, NO_TASK, NO_TASKS
from lmmkit.recipe import Recipe, Task

KINDS = ("exact_match", "terms", "restore")


def task_problems(recipe: Recipe, only: Sequence[str] = ()) -> list[Problem]:
    """Returns the problems of the recipe's tasks, or of those named in `only`."""
    tasks = recipe.evaluate.tasks if recipe.evaluate is not None else {}
    return [
        problem
        for name, task in tasks.items()
        if not only or name in only
        for problem in _task(recipe, f"evaluate.tasks.{name}", task.kind or name, task)
    ]


def choice_problems(recipe: Recipe, only: Sequence[str]) -> list[Problem]:
    """Returns a problem for each name in `only` that is no task of the recipe, or one if it has no tasks."""
    tasks = recipe.evaluate.tasks if recipe.evaluate is not None else {}
    if not tasks:
        return [NO_TASKS.at(recipe.where("evaluate"), got="no tasks")]
    return [
        NO_TASK.at(f"--on {name}", got=f"`{name}`", nearest=did_you_mean(name, tasks))
        for name in only
        if name not in tasks
    ]


def _task(recipe: Recipe, key: str, kind: str, task: Task) -> list[Problem]:
    problems = []
    if kind not in KINDS:
        kinds, nearest = ", ".join(KINDS), did_you_mean(kind, KINDS)
        where = recipe.where(f"{key}.kind")
        problems.append(NO_KIND.at(where, got=f"kind `{kind}`", kinds=kinds, nearest=nearest))
    if task.data is None:
        problems.append(FILES.at(recipe.where(f"{key}.files"), got=f"`files: {task.files}`"))
    if task.stage is not None and task.stage not in recipe.stages:
        where, nearest = recipe.where(f"{key}.stage"), did_you_mean(task.stage, recipe.stages)
        problems.append(NO_STAGE.at(where, got=f"`{task.stage}`", nearest=nearest))
    return problems
