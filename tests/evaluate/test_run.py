"""The evaluation of a run: the problems it reports first, and what it writes."""

from __future__ import annotations

import json

import pytest

from lmmkit.errors import UserError
from lmmkit.evaluate import run
from lmmkit.evaluate.keep import OneProcess
from lmmkit.evaluate.restore import Restore
from lmmkit.evaluate.run import TaskResult, evaluate, evaluate_model
from lmmkit.evaluate.task import Figure
from lmmkit.recipe import Task
from lmmkit.runs.run_folder import RunFolder


def test_problems_are_reported_before_a_model_is_opened(tiny, tmp_path):
    recipe = tiny("evaluate.tasks={terms: {data: heldout, stage: finetun}}")
    with pytest.raises(UserError) as error:
        evaluate(RunFolder(tmp_path), recipe, only=["term"])
    assert [p.code for p in error.value.problems] == ["evaluate/unknown-task", "evaluate/unknown-stage"]
    assert "`terms`" in error.value.problems[0].hint


def test_a_recipe_without_tasks_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="evaluate/no-tasks"):
        evaluate(RunFolder(tmp_path), tiny("evaluate.tasks={}"))


@pytest.mark.parametrize(("task", "read"), [("terms", ["heldout"]), ("answers", ["heldout", "questions"])])
def test_training_records_are_read_only_for_a_baseline(tiny, tmp_path, monkeypatch, task, read):
    class Opened(Exception):
        pass

    def opened(recipe, names):
        raise Opened(names)

    monkeypatch.setattr(run, "open_sources", opened)
    recipe = tiny("evaluate.tasks={terms: {data: heldout}, answers: {kind: questions, data: heldout}}")
    with pytest.raises(Opened) as error:
        evaluate(RunFolder(tmp_path), recipe, only=[task])
    assert sorted(error.value.args[0]) == read


def test_a_result_is_written_as_its_figures_and_seconds():
    figures = {"text_order": Figure(value=0.5, chance=0.1, n=2)}
    assert TaskResult(Restore("restore", Task(data="x")), figures, 3.0).as_json() == {
        "text_order": {"value": 0.5, "low": None, "high": None, "chance": 0.1, "n": 2},
        "seconds": 3.0,
    }


def test_only_the_first_rank_has_facts_and_writes(answering, tmp_path):
    """Leaves to the first rank what it writes: the others do not wait for it."""

    class Answered:
        def input_problems(self):
            return []

        def run(self, chat_model, samples, *, controls, keep):
            return {}

        def facts(self, keep):
            return {"status": (keep.folder / "summary.json").read_text()}

    model, second = answering / "model" / "finetune", OneProcess(world=2, rank=1)
    results = evaluate_model(model, {"x": Answered()}, out=tmp_path, ranks=second)
    assert results["x"].facts == {} and not list(tmp_path.iterdir())
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "summary.json").write_text("scored")
    results = evaluate_model(model, {"x": Answered()}, out=tmp_path)
    assert results["x"].facts == {"status": "scored"} and (tmp_path / "results.json").is_file()


def test_a_task_that_fails_loses_none_of_those_before(answering, tmp_path):
    class Answered:
        def __init__(self, error=None):
            self.error = error

        def input_problems(self):
            return []

        def run(self, chat_model, samples, *, controls, keep):
            if self.error is not None:
                raise self.error
            return {"accuracy": Figure(value=0.5, n=2)}

        def facts(self, keep):
            return {}

    shown = []
    tasks = {"one": Answered(), "two": Answered(UserError([])), "three": Answered()}
    with pytest.raises(UserError):
        evaluate_model(answering / "model" / "finetune", tasks, out=tmp_path, show=shown.append)
    written = json.loads((tmp_path / "results.json").read_text())
    assert list(written) == ["one"] and [list(results) for results in shown] == [["one"]]
