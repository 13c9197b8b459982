"""What the runs of a grid have given, and results that do not belong together."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lmmkit.ablation.results import read_finished
from lmmkit.ablation.store import Store
from lmmkit.errors import UserError
from tests.support.grids import finished, stage_run, write_answers

SCORES = [1.0, 0.0, 1.0, 1.0]


def made(tmp_path, arm="plain", *, scores=SCORES, value=0.75, data=None, asked="d"):
    """Writes a finished run into a store; returns both."""
    store, run = Store(tmp_path), finished(arm, 1, {}).run
    stages = (replace(stage_run(f"{arm}key"), data={"captions": {"count": 3}}),)
    run = replace(run, stages=stages, questions={"answers": "q"})
    folder = store.run(run.key)
    model = folder.model("pretrain")
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    folder.run_json.write_text(json.dumps({"data": data or {"captions": {"count": 3}, "more": 1}}))
    folder.resolved.write_text(__import__("lmmkit.recipe").recipe.dump(stages[0].recipe))
    folder.results.write_text(json.dumps({"answers": {"accuracy": {"value": value, "n": 4}}}))
    folder.metrics.write_text(json.dumps({"step": 1, "tokens": 5, "seconds": 0.5}) + "\n")
    write_answers(folder.answers("pretrain", "x").parent, scores, data=asked)
    store.note_evaluated(run)
    return store, run


def refused(store, *runs):
    with pytest.raises(UserError) as error:
        read_finished(store, runs)
    return {problem.code for problem in error.value.problems}


def test_a_finished_run_has_figures_scores_and_costs(tmp_path):
    store, run = made(tmp_path)
    (found,) = read_finished(store, [run])
    assert found.value("answers/accuracy") == 0.75 and found.value("answers/no") is None
    assert found.value("terms/x") is None
    scores = found.scores("answers/accuracy")
    assert scores is not None and [answer.score for answer in scores.values()] == SCORES
    odd = found.scores("answers/accuracy/odd")
    assert odd is not None and sorted(odd) == ["q1", "q3"]
    other = found.scores("answers/accuracy/other")
    assert other is not None and sorted(other) == ["q3"], "by prior, not by type"
    assert found.scores("answers/image_attention") is None and found.scores("terms/x") is None
    assert found.costs[0].tokens == 5 and found.costs[0].cpu_seconds is None


def test_a_run_without_evaluation_is_not_finished(tmp_path):
    store, run = made(tmp_path)
    assert read_finished(store, [replace(run, questions={"answers": "q", "terms": "t"})]) == []
    (store.model(run.last) / "config.json").unlink()
    assert read_finished(store, [run]) == []


def test_a_run_on_another_version_of_the_data_is_refused(tmp_path):
    store, run = made(tmp_path, data={"captions": {"count": 4}})
    assert refused(store, run) == {"ablation/other-data"}


def test_answers_that_do_not_add_up_are_refused(tmp_path):
    store, run = made(tmp_path, value=0.5)
    assert refused(store, run) == {"ablation/answers-differ"}


def test_answers_to_other_questions_are_refused(tmp_path):
    store, first = made(tmp_path)
    _, second = made(tmp_path, "other", asked="e")
    assert refused(store, first, second) == {"ablation/other-questions"}
    assert len(read_finished(store, [first, replace(second, root="/another")])) == 2


def test_an_evaluation_with_other_settings_is_refused(tmp_path):
    store, run = made(tmp_path)
    assert refused(store, replace(run, questions={"answers": "changed"})) == {"ablation/other-questions"}
