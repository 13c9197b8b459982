"""Averages, intervals, controls and the tasks' bookkeeping."""

from __future__ import annotations

import numpy as np
import pytest

from lmmkit.api.sample import Image, Sample, Turn
from lmmkit.data.images import Blank
from lmmkit.evaluate.checks import choice_problems, task_problems
from lmmkit.evaluate.controls import blank, swapped
from lmmkit.evaluate.exact_match import exact_match
from lmmkit.evaluate.restore import restore
from lmmkit.evaluate.stats import mean_with_interval


def test_without_clusters_the_interval_is_the_binomial_one():
    values = [1.0] * 30 + [0.0] * 70
    got = mean_with_interval(values, [str(i) for i in range(100)])
    error = 1.96 * np.sqrt(0.3 * 0.7 / 100)
    assert got["value"] == pytest.approx(0.3) and got["n"] == 100
    assert got["low"] == pytest.approx(0.3 - error, rel=0.02) and got["high"] == pytest.approx(
        0.3 + error, rel=0.02
    )


def test_equal_answers_within_a_scene_widen_the_interval():
    values = [1.0, 1.0, 1.0] * 30 + [0.0, 0.0, 0.0] * 70
    alone = mean_with_interval(values, [str(i) for i in range(300)])
    together = mean_with_interval(values, [str(i // 3) for i in range(300)])
    ratio = (together["high"] - together["low"]) / (alone["high"] - alone["low"])
    assert ratio == pytest.approx(np.sqrt(3), rel=0.02)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        scene = rng.beta(2, 2, 80)
        values = (rng.random((80, 3)) < scene[:, None]).astype(float).ravel()
        got = mean_with_interval(values.tolist(), [str(i // 3) for i in range(240)])
        hits += got["low"] <= 0.5 <= got["high"]
    assert 0.92 <= hits / 400 <= 0.98


def test_no_values_give_no_mean():
    assert np.isnan(mean_with_interval([], [])["value"])


def test_tasks_that_cannot_run_are_told_all_at_once(tiny):
    recipe = tiny(
        "evaluate.tasks={pope: {files: eval/pope}, terms: {data: heldout, stage: finetun}, "
        "x: {kind: exact_mach, data: heldout}}"
    )
    found = {p.code: p for p in task_problems(recipe)}
    assert set(found) == {"evaluate/unknown-kind", "evaluate/files", "evaluate/unknown-stage"}
    assert "only tasks with `data`" in found["evaluate/files"].hint
    assert "`finetune`" in found["evaluate/unknown-stage"].hint
    assert [p.code for p in task_problems(recipe, only=["terms"])] == ["evaluate/unknown-stage"]
    assert [p.code for p in choice_problems(recipe, ["term"])] == ["evaluate/unknown-task"]
    assert task_problems(tiny()) == [] == choice_problems(tiny(), ["terms"])


def samples() -> list[Sample]:
    return [
        Sample(
            key=f"{scene}/{i}", images=(Image(f"{scene}.jpg"),), meta={"type": "colour" if i else "count", "scene": scene},
            turns=(Turn("user", f"question {i}", images=1), Turn("assistant", answer)),
        )
        for scene, answers in (("a", ("one", "red")), ("b", ("two", "red")), ("c", ("one", "blue")))
        for i, answer in enumerate(answers)
    ]  # fmt: skip


def test_swapped_gives_as_many_pictures_as_there_were():
    names = [("a",), (), ("b", "c"), ("d",), ("e", "f"), ()]
    mixed = [Sample(key=str(i), turns=(), images=tuple(map(Image, paths))) for i, paths in enumerate(names)]
    got = [tuple(image.path for image in s.images) for s in swapped(mixed)]
    assert got == [("d",), (), ("e", "f"), ("a",), ("b", "c"), ()]


def test_swapped_gives_every_question_another_scene_s_picture():
    for before, after in zip(samples(), swapped(samples()), strict=True):
        assert before.images != after.images and before.turns == after.turns
    assert [s.images[0].path for s in swapped(samples())] == [
        "b.jpg",
        "b.jpg",
        "c.jpg",
        "c.jpg",
        "a.jpg",
        "a.jpg",
    ]


def test_blank_edits_every_picture():
    assert {s.images[0].edit for s in blank(samples(), edit=Blank("mean"))} == {Blank("mean")}


class StubSpeaker:
    """Answers as if it saw: right on a.jpg, "red" elsewhere; "one" on blanks."""

    stage = "s"

    class prepared:
        class dims:
            from lmmkit.api.model_info import ImageSpec

            image = ImageSpec(size=8, grid=(1, 1), width=1)

    def answer(self, groups, *, max_new_tokens):
        out = []
        for group in groups:
            assert len({view.sample.images for view in group}) == 1, "a group shares its picture"
            for view in group:
                assert view.sample.turns[-1].role == "user", "the answer is not shown"
                image = view.sample.images[0]
                first = view.sample.turns[-1].text.endswith("0")
                out.append("one" if image.edit or (image.path == "a.jpg" and first) else "red")
        return out


def test_exact_match_counts_by_type_and_control():
    got = exact_match(
        StubSpeaker(), samples(), max_new_tokens=3, controls=("blank", "swapped"), training=samples()[:2]
    )
    assert got["accuracy"]["value"] == pytest.approx(3 / 6)
    assert got["accuracy_blank"]["value"] == pytest.approx(2 / 6)
    assert got["accuracy_swapped"]["value"] == pytest.approx(3 / 6)  # c/0 on a.jpg, and red twice
    assert got["by_type"]["colour"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert got["majority"] == pytest.approx(4 / 6)  # "one" to question 0, "red" to question 1


def test_restore_scores_what_was_written():
    from types import SimpleNamespace

    from lmmkit_shuffle.text_order import TextOrder

    from lmmkit.api.sample import View

    task = TextOrder(name="text_order")

    class ChatModel:
        stage = "pretrain"
        prepared = SimpleNamespace(plans={"pretrain": SimpleNamespace(tasks=(task,))})
        views = SimpleNamespace(
            of=lambda sample, epoch: [
                View(sample=v.sample, name="text_order") for v in task.views(sample, np.random.default_rng(0))
            ]
        )

        def answer(self, groups, *, max_new_tokens):
            assert all(view.sample.turns[-1].role == "user" for (view,) in groups)
            return ["a red cat", "wrong"]

    texts = [Sample(key=str(i), turns=(Turn("user", ""), Turn("assistant", "a red cat"))) for i in range(2)]
    assert restore(ChatModel(), texts, max_new_tokens=5)["text_order"] == {
        "value": 0.5,
        "chance": pytest.approx(1 / 6),
        "n": 2,
    }
