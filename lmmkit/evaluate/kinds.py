"""The kinds of evaluation tasks, and the problems in a recipe's `evaluate` section."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from lmmkit.errors import Problem, did_you_mean
from lmmkit.errors.plan import NO_KIND
from lmmkit.evaluate.benchmarks.names import BENCHMARKS
from lmmkit.evaluate.controls import control_problems
from lmmkit.evaluate.questions.benchmark_task import BenchmarkTask
from lmmkit.evaluate.questions.questions_task import QuestionsTask
from lmmkit.evaluate.restore import Restore
from lmmkit.evaluate.task import EvalTask, stage_problems
from lmmkit.evaluate.terms import Terms
from lmmkit.recipe import Recipe, Task

TASKS: dict[str, type[EvalTask]] = {"questions": QuestionsTask, "terms": Terms, "restore": Restore}
TASKS |= dict.fromkeys(BENCHMARKS, BenchmarkTask)


def tasks_of(recipe: Recipe, only: Collection[str] = ()) -> dict[str, EvalTask]:
    """Returns the recipe's tasks by name, or those named in `only`.

    Leaves out tasks of an unknown kind; `task_problems` reports them.
    """
    sections = recipe.evaluate.tasks if recipe.evaluate is not None else {}
    return {
        name: TASKS[kind](name, _rooted(section, recipe))
        for name, section in sections.items()
        if (kind := section.kind or name) in TASKS and (not only or name in only)
    }


def task_problems(recipe: Recipe) -> list[Problem]:
    """Returns the problems of all tasks, and of the images of controls. Needs no data, no plugins, no weights."""
    problems = control_problems(recipe)
    for name, section in (recipe.evaluate.tasks if recipe.evaluate is not None else {}).items():
        kind = section.kind or name
        if kind in TASKS:
            problems += TASKS[kind](name, _rooted(section, recipe)).problems(recipe)
        else:
            where, kinds = recipe.where(f"evaluate.tasks.{name}.kind"), ", ".join(TASKS)
            nearest = did_you_mean(kind, TASKS)
            problems.append(NO_KIND.at(where, got=f"kind `{kind}`", kinds=kinds, nearest=nearest))
            problems += stage_problems(name, section, recipe)
    return problems


def _rooted(section: Task, recipe: Recipe) -> Task:
    """Returns the section with `files` relative to the recipe's root."""
    return section if section.files is None else replace(section, files=str(recipe.path(section.files)))
