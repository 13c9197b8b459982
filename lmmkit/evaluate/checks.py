"""What is wrong with a recipe's `evaluate`: known before a run costs anything, and asked again by it."""

from __future__ import annotations

from collections.abc import Sequence

from lmmkit.errors import Problem, did_you_mean
from lmmkit.recipe import Recipe, Task

KINDS = ("exact_match", "terms", "restore")


def task_problems(recipe: Recipe, only: Sequence[str] = ()) -> list[Problem]:
    """Problems of the recipe's tasks, or of those named in `only`."""
    tasks = recipe.evaluate.tasks if recipe.evaluate is not None else {}
    return [
        problem
        for name, task in tasks.items()
        if not only or name in only
        for problem in _task(recipe, f"evaluate.tasks.{name}", task.kind or name, task)
    ]


def choice_problems(recipe: Recipe, only: Sequence[str]) -> list[Problem]:
    """Names in `only` that are no task of the recipe; or that it has no task at all."""
    tasks = recipe.evaluate.tasks if recipe.evaluate is not None else {}
    if not tasks:
        mend = "Add an `evaluate` section with tasks."
        return [Problem("evaluate/none", recipe.where("evaluate"), "no tasks", "at least one", mend)]
    want = "a task of the recipe's `evaluate`"
    return [
        Problem("evaluate/no-task", f"--on {name}", f"`{name}`", want, did_you_mean(name, tasks))
        for name in only
        if name not in tasks
    ]


def _task(recipe: Recipe, key: str, kind: str, task: Task) -> list[Problem]:
    problems = []
    if kind not in KINDS:
        got, want = f"kind `{kind}`", f"one of {', '.join(KINDS)}"
        where = recipe.where(f"{key}.kind")
        problems.append(Problem("evaluate/no-kind", where, got, want, did_you_mean(kind, KINDS)))
    if task.data is None:
        where, got = recipe.where(f"{key}.files"), f"`files: {task.files}`"
        mend = "This release evaluates only tasks with `data`: name a source there."
        problems.append(Problem("evaluate/files", where, got, "`data`", mend))
    if task.stage is not None and task.stage not in recipe.stages:
        where, mend = recipe.where(f"{key}.stage"), did_you_mean(task.stage, recipe.stages)
        problems.append(Problem("evaluate/no-stage", where, f"`{task.stage}`", "a stage", mend))
    return problems
