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
    folder.metrics.write_text(json.dumps({"step": 6, "tokens": 5, "seconds": 0.5}) + "\n")
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
    assert found.costs[0].tokens == 30 and found.costs[0].cpu_seconds is None


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


def test_figures_of_answers_that_are_not_there_are_refused(tmp_path):
    store, run = made(tmp_path)
    figures = {"accuracy": {"value": 0.75, "n": 4}, "coverage": {"expected": 4, "answered": 4}}
    store.run(run.key).results.write_text(json.dumps({"answers": figures, "terms": {"x": {"value": 1}}}))
    assert len(read_finished(store, [run])) == 1
    (store.run(run.key).answers("pretrain", "answers") / "answers.jsonl").unlink()
    assert refused(store, run) == {"ablation/answers-differ"}


def test_an_evaluation_with_other_settings_is_refused(tmp_path):
    store, run = made(tmp_path)
    assert refused(store, replace(run, questions={"answers": "changed"})) == {"ablation/other-questions"}


def change_lines(store, run, change):
    """Changes the kept answers: `change` gets their lines as objects and returns the new ones."""
    path = store.run(run.key).answers("pretrain", "answers") / "answers.jsonl"
    lines = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


HALF = [1.0, 0.0, 1.0, 0.0]
BY_TYPE = {"accuracy": (0.5, 4), "accuracy/odd": (0.0, 2), "accuracy/even": (1.0, 2)}


def results(store, run, **figures):
    found = {name: {"value": value, "n": n} for name, (value, n) in figures.items()}
    store.run(run.key).results.write_text(json.dumps({"answers": found}))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda lines: lines[:2], "ablation/answers-differ"),
        (lambda lines: [*lines, {**lines[0], "id": "q8"}, {**lines[1], "id": "q9"}], "ablation/answers-differ"),
        (lambda lines: [{**lines[0], "score": 0.0}, {**lines[1], "score": 1.0}, *lines[2:]], "ablation/answers-differ"),
        (lambda lines: [*lines, lines[0]], "answers/duplicate"),
        (lambda lines: [{**lines[0], "score": float("nan")}, *lines[1:]], "answers/damaged"),
        (lambda lines: [{**lines[0], "score": "1"}, *lines[1:]], "answers/damaged"),
    ],
)  # fmt: skip
def test_answers_whose_mean_is_right_by_chance_are_refused(tmp_path, change, code):
    store, run = made(tmp_path, scores=HALF, value=0.5)
    results(store, run, **BY_TYPE)
    assert len(read_finished(store, [run])) == 1
    change_lines(store, run, change)
    assert refused(store, run) == {code}


def test_the_figures_of_a_control_add_up_with_questions_without_an_image(tmp_path):
    store, run = made(tmp_path)
    shown = {"images": ["i.png"]}
    change_lines(
        store, run, lambda a: [a[0] | shown, *a[1:], a[0] | shown | {"condition": "blank", "score": 0.0}]
    )
    results(store, run, accuracy=(0.75, 4), accuracy_blank=(0.5, 4))
    (found,) = read_finished(store, [run])
    scores = found.scores("answers/accuracy_blank")
    assert scores is not None and sorted((id, each.score) for id, each in scores.items()) == [
        ("q0", 0.0), ("q1", 0.0), ("q2", 1.0), ("q3", 1.0),
    ]  # fmt: skip
    results(store, run, accuracy=(0.75, 4), accuracy_blank=(0.25, 4))
    assert refused(store, run) == {"ablation/answers-differ"}


def test_of_groups_with_one_name_the_figure_is_that_of_the_last_kind(tmp_path):
    store, run = made(tmp_path)
    change_lines(store, run, lambda a: [a[0] | {"groups": {"type": "other", "prior": "usual"}}, *a[1:]])
    (found,) = read_finished(store, [run])
    assert list(found.scores("answers/accuracy/other") or ()) == ["q3"]


def test_answers_without_their_header_and_fewer_answers_are_refused(tmp_path):
    store, run = made(tmp_path)
    _, fewer = made(tmp_path, "fewer", scores=SCORES[:3], value=2 / 3)
    results(store, fewer, accuracy=(2 / 3, 3))
    assert refused(store, run, fewer) == {"ablation/other-questions"}
    (store.run(run.key).answers("pretrain", "answers") / "answers.json").unlink()
    assert refused(store, run) == {"ablation/other-questions"}


@pytest.mark.parametrize("value", ['"x"', "true", "[1]", "NaN", "1e999", "1" + 400 * "0", "null"])
def test_a_value_that_is_no_number_is_none(tmp_path, value):
    store, run = made(tmp_path)
    for text in (f'{{"answers": {{"accuracy": {{"value": {value}, "n": 4}}}}}}', f'{{"answers": {value}}}'):
        store.run(run.key).results.write_text(text)
        (found,) = read_finished(store, [run])
        assert found.value("answers/accuracy") is None


def test_the_problems_of_all_runs_are_reported_at_once(tmp_path):
    store, other_data = made(tmp_path, data={"captions": {"count": 4}})
    runs = [other_data, *(made(tmp_path, arm)[1] for arm in ("one", "two"))]
    change_lines(store, runs[1], lambda lines: [{**lines[0], "score": "1"}, *lines[1:]])
    results(store, runs[2], accuracy=(0.5, 4))
    with pytest.raises(UserError) as error:
        read_finished(store, runs)
    assert sorted((problem.code, problem.where.split("key/")[0].split("/")[-1]) for problem in error.value.problems) == [
        ("ablation/answers-differ", "two"), ("ablation/other-data", "plain"), ("answers/damaged", "one"),
    ]  # fmt: skip
