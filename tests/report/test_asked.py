"""The questions of a report: which task, which pairs, and the same differences as `lmmkit answers compare`."""

from __future__ import annotations

import json

import pytest

from lmmkit.errors import UserError
from lmmkit.evaluate.answers.answers_file import read_answers
from lmmkit.evaluate.answers.compare import compare_answers
from lmmkit.report.asked import ask_runs, not_adding_up, score_of
from lmmkit.report.loaded_run import load_runs
from tests.support.run_folders import (
    change_answer,
    draw_answers,
    draw_images,
    items_on,
    make_pair,
    store_answers,
    write_run,
)

FILE = "answers/finetune/answers/answers.jsonl"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"), scenes=20)


def test_a_difference_is_that_of_answers_compare(pair):
    pytest.importorskip("statsmodels")
    asked = ask_runs(load_runs(pair))
    ours = asked.difference(0, 1, score_of("own"))
    theirs = compare_answers("answers", *(read_answers(run / FILE) for run in pair)).difference
    assert ours is not None and ours.n == theirs.n == 60
    assert theirs.low is not None and theirs.high is not None
    assert (ours.value, ours.low, ours.high) == (theirs.value, theirs.low, theirs.high)


def test_kinds_conditions_and_answers_of_sound_runs(pair):
    asked = ask_runs(load_runs(pair))
    assert (asked.task, asked.figure) == ("answers", "accuracy")
    assert asked.conditions == ["own", "blank", "swapped"] and asked.kinds == ["colour", "count", "shape"]
    assert not_adding_up(asked) == []
    by_hand = [
        sum(a[k] for a in lines) / len(lines)
        for lines in ([json.loads(x) for x in (run / FILE).read_text().splitlines() if '"own"' in x and '"type": "count"' in x] for run in pair)
        for k in ("score",)
    ]  # fmt: skip
    found = asked.difference(0, 1, score_of("own"), "count")
    assert found is not None and found.value == pytest.approx(by_hand[1] - by_hand[0]) and found.n == 20


def test_answers_that_do_not_add_up_are_named_where_they_do_not(tmp_path):
    pair = make_pair(tmp_path, scenes=5)
    line = json.loads((pair[1] / FILE).read_text().splitlines()[0])
    change_answer(pair[1], 0, score=1.0 - line["score"])
    assert not_adding_up(ask_runs(load_runs(pair))) == [
        "direct, all questions, own image",
        "direct, colour, own image",
    ]


def test_only_common_questions_are_compared(tmp_path):
    images = draw_images(tmp_path / "images", 6)
    items = items_on(images)
    a = write_run(tmp_path / "a", items, skill=0.5, seed=1)
    b = write_run(tmp_path / "b", items[:9], skill=0.5, seed=2)
    asked = ask_runs(load_runs([a, b]))
    found = asked.difference(0, 1, score_of("own"))
    assert found is not None and found.n == 9
    assert len(list(asked.common(0, 1))) == 9


def test_runs_without_a_common_question_are_refused(tmp_path):
    images = draw_images(tmp_path / "images", 6)
    a = write_run(tmp_path / "a", items_on(images[:3]), skill=0.5, seed=1)
    b = write_run(tmp_path / "b", items_on(images[3:]), skill=0.5, seed=2)
    with pytest.raises(UserError, match="report/other-questions"):
        ask_runs(load_runs([a, b]))


def test_the_same_ids_with_other_prompts_are_other_questions(tmp_path):
    items = items_on(draw_images(tmp_path / "images", 2))
    a = write_run(tmp_path / "a", items, skill=0.5, seed=1)
    b = write_run(tmp_path / "b", items, skill=0.5, seed=2)
    for n in range(18):
        change_answer(b, n, prompt_sha="0" * 16)
    with pytest.raises(UserError, match="none of which a answered"):
        ask_runs(load_runs([a, b]))


def test_a_task_can_be_named(tmp_path):
    items = items_on(draw_images(tmp_path / "images", 2))
    run = write_run(tmp_path / "a", items, skill=0.5, seed=1)
    results = json.loads((run / "results.json").read_text())
    store_answers(run, items, draw_answers(items, skill=1.0, seed=3, task="again"), task="again")
    both = results | json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(both))
    runs = load_runs([run])
    assert ask_runs(runs).task == "answers" and ask_runs(runs, "again").task == "again"
    with pytest.raises(UserError, match="report/no-task") as error:
        ask_runs(runs, "agian")
    assert "again" in str(error.value)


def test_a_run_without_results_has_no_task(tmp_path):
    run = write_run(tmp_path / "a", items_on(draw_images(tmp_path / "images", 1)), skill=0.5, seed=1)
    (run / "results.json").unlink()
    (run / FILE).unlink()
    assert ask_runs(load_runs([run])).task is None


def test_answers_without_their_header_are_checked_too(tmp_path):
    pair = make_pair(tmp_path, scenes=5)
    (pair[1] / FILE).with_name("answers.json").unlink()
    assert not_adding_up(ask_runs(load_runs(pair))) == []
    line = json.loads((pair[1] / FILE).read_text().splitlines()[0])
    change_answer(pair[1], 0, score=1.0 - line["score"])
    assert len(not_adding_up(ask_runs(load_runs(pair)))) == 2


def test_of_groups_with_one_name_the_last_kind_counts(tmp_path):
    pair = make_pair(tmp_path, scenes=5)
    lines = [json.loads(line) for line in (pair[0] / FILE).read_text().splitlines()]
    own = [n for n, line in enumerate(lines) if line["condition"] == "own"]
    first, second = (
        own[0],
        next(n for n in own if lines[n]["groups"]["type"] != lines[own[0]]["groups"]["type"]),
    )
    name = lines[first]["groups"]["type"]
    for run in pair:
        score = json.loads((run / FILE).read_text().splitlines()[second])["score"]
        change_answer(run, second, groups={"type": "x", "prior": name})
        results = json.loads((run / "results.json").read_text())
        results["answers"][f"accuracy/{name}"] |= {"value": score, "n": 1}
        (run / "results.json").write_text(json.dumps(results))
    asked = ask_runs(load_runs(pair))
    assert [id for id, *_ in asked.common(0, 1, name)] == [lines[second]["id"]]
    assert not any(f", {name}, own image" in text for text in not_adding_up(asked))
