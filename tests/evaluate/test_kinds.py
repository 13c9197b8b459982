"""The kinds of tasks, and the problems of a recipe's tasks."""

from __future__ import annotations

from dataclasses import replace

from lmmkit.evaluate.kinds import task_problems, tasks_of
from lmmkit.evaluate.questions.questions_task import QuestionsTask
from lmmkit.evaluate.terms import Terms


def test_tasks_that_cannot_run_are_reported_together(tiny):
    recipe = tiny(
        "evaluate.tasks={terms: {data: heldout, stage: finetun}, x: {kind: questons, data: heldout}, "
        "pop: {data: heldout}}"
    )
    stage, typo, unknown = task_problems(recipe)
    assert stage.code == "evaluate/unknown-stage" and "`finetune`" in stage.hint
    assert typo.code == unknown.code == "evaluate/unknown-kind"
    assert "evaluate.tasks.x.kind" in typo.where and "`questions`" in typo.hint
    assert "evaluate.tasks.pop" in unknown.where and "questions, terms, restore" in unknown.expected
    assert list(tasks_of(recipe)) == ["terms"], "those of a known kind"


def test_the_kind_is_by_default_the_name(tiny):
    recipe = tiny("evaluate.tasks={terms: {data: heldout}, x: {kind: questions, data: heldout}}")
    assert task_problems(recipe) == []
    tasks = tasks_of(recipe)
    assert {name: type(task) for name, task in tasks.items()} == {"terms": Terms, "x": QuestionsTask}
    assert tasks["x"].name == "x" and tasks["x"].section == recipe.evaluate.tasks["x"]
    assert list(tasks_of(recipe, ["x"])) == ["x"]


def test_a_recipe_may_have_no_tasks(tiny):
    recipe = replace(tiny(), evaluate=None)
    assert task_problems(recipe) == [] and tasks_of(recipe) == {}
