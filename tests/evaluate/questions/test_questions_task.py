"""Questions of one's own: accuracies by type and control, the baseline next to them, and the table."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import Image, Turn
from lmmkit.errors import UserError
from lmmkit.evaluate.answers.schema import data_sha
from lmmkit.evaluate.questions.questions_task import QuestionsTask, baseline_of, item_of
from lmmkit.evaluate.task import Figure
from lmmkit.recipe import Task
from tests.support.scene_questions import samples
from tests.support.toy_benchmark import answering_with

TASK = QuestionsTask("answers", Task(data="heldout", max_new_tokens=3))
MODEL = SimpleNamespace(
    prepared=SimpleNamespace(dims=SimpleNamespace(image=ImageSpec(size=8, grid=(1, 1), width=1)))
)


def first_on_a(question) -> str:
    """Answers right on a.jpg, "red" elsewhere, and "one" on blank images."""
    (image,) = question.sample.images
    assert question.sample.turns[-1].role == "user", "the answer is not in the prompt"
    first = question.sample.turns[-1].text.strip().endswith("0")
    return "one" if image.edit or (image.path == "a.jpg" and first) else "red"


@pytest.fixture(autouse=True)
def model(monkeypatch):
    answering_with(monkeypatch, first_on_a)


def measured(**more):
    return TASK.run(MODEL, samples(), controls=("blank", "swapped"), **more)


def test_accuracy_is_counted_by_type_and_control():
    got = measured()
    assert got["accuracy"].value == pytest.approx(3 / 6) and got["accuracy"].n == 6
    assert got["accuracy_blank"].value == pytest.approx(2 / 6)
    assert got["accuracy_swapped"].value == pytest.approx(3 / 6)  # c/0 on a.jpg, and red twice
    assert got["accuracy/colour"].value == pytest.approx(2 / 3) and got["accuracy/colour"].n == 3
    assert got["accuracy_blank/count"].value == pytest.approx(2 / 3)
    assert all(f.low <= f.value <= f.high for name, f in got.items() if not name.startswith("changed"))
    details = ("", "/colour", "/count")
    accuracies = [f"accuracy{c}{d}" for c in ("", "_blank", "_swapped") for d in details]
    probed = ["visual_gain", "visual_gain_swapped", "changed_blank", "changed_swapped"]
    assert list(got) == accuracies + probed
    assert got["visual_gain"].value == pytest.approx(1 / 6) and got["changed_blank"].value == pytest.approx(
        5 / 6
    )


def test_items_name_images_in_one_file_by_their_place():
    def at(offset):
        return [
            item_of(replace(s, images=(Image("/x.tar", part=(offset + i, 9)),)))
            for i, s in enumerate(samples())
        ]

    assert len({item.images for item in at(0)}) == len(samples()) and data_sha(at(0)) != data_sha(at(50))
    assert item_of(samples()[0]).images == ("a.jpg",)


def test_accuracy_is_counted_by_the_prior_of_a_record():
    marked = [
        replace(s, meta=s.meta | ({"prior": "usual" if i < 3 else "other"} if i < 5 else {}))
        for i, s in enumerate(samples())
    ]
    got = TASK.run(MODEL, marked, controls=("swapped",))
    assert [name for name in got if name.startswith("accuracy/")] == [
        "accuracy/colour", "accuracy/count", "accuracy/other", "accuracy/usual",
    ]  # fmt: skip
    assert (got["accuracy/usual"].n, got["accuracy/other"].n) == (3, 2)
    assert got["accuracy/usual"].value == pytest.approx(2 / 3)  # a/0 and a/1 right, b/0 wrong
    assert got["accuracy/other"].value == pytest.approx(1 / 2)  # b/1 right, c/0 wrong
    assert got["accuracy_swapped/other"].value == pytest.approx(2 / 2)


def test_the_majority_baseline_is_the_chance_of_the_same_questions():
    got = measured(baseline=baseline_of(samples()[:2]))
    for control in ("", "_blank", "_swapped"):
        assert got[f"accuracy{control}"].chance == pytest.approx(
            4 / 6
        )  # "one" to question 0, "red" to question 1
        assert got[f"accuracy{control}/colour"].chance == pytest.approx(2 / 3)
    assert all(figure.chance is None for figure in measured().values())


def test_model_and_baseline_are_compared_with_the_same_trimmed_answer():
    padded = [replace(s, turns=(s.turns[0], Turn("assistant", s.turns[1].text + "\n"))) for s in samples()]
    got = TASK.run(MODEL, padded, baseline=baseline_of(padded))
    assert got == TASK.run(MODEL, samples(), baseline=baseline_of(samples()))
    assert got["accuracy"].value > 0 and got["accuracy"].chance > 0


def test_white_space_around_questions_and_answers_changes_neither_model_nor_baseline(monkeypatch):
    heldout = [replace(s, turns=(Turn("user", s.turns[0].text), s.turns[1])) for s in samples()]
    padded = [
        replace(
            s, turns=(Turn("user", f" {s.turns[0].text}\n", 1), Turn("assistant", f"\t{s.turns[1].text} "))
        )
        for s in samples()
    ]
    clean, found = (TASK.run(MODEL, heldout, baseline=baseline_of(each)) for each in (samples(), padded))
    assert found == clean and clean["accuracy"].chance > 0
    answering_with(monkeypatch, lambda question: f" {first_on_a(question)}\n")
    assert TASK.run(MODEL, heldout, baseline=baseline_of(samples())) == clean


def test_without_samples_the_value_is_not_a_number():
    figure = TASK.run(MODEL, [], baseline=baseline_of(samples()))["accuracy"]
    assert figure.n == 0 and figure.value != figure.value and figure.chance is None


def test_the_table_has_a_line_for_each_type_and_one_for_all():
    headings, *lines = TASK.table(measured(baseline=baseline_of(samples()[:2])))
    assert headings == ("questions", "image", "blank", "swapped", "majority", "n")
    assert [line[0] for line in lines] == ["colour", "count", "all"]
    assert lines[2][1].startswith("50.0 (") and lines[2][4:] == ("66.7", "6")


def test_one_of_several_right_answers_is_enough():
    asked = [replace(s, meta={**s.meta, "answers": ("none", s.turns[1].text)}) for s in samples()]
    asked = [replace(s, turns=(s.turns[0], Turn("assistant", "another text"))) for s in asked]
    assert TASK.run(MODEL, asked)["accuracy"] == TASK.run(MODEL, samples())["accuracy"]
    assert TASK.run(MODEL, asked, baseline=baseline_of(samples()))["accuracy"].chance == pytest.approx(4 / 6)


def test_the_baseline_is_judged_by_the_rule_of_the_task():
    asked = [
        replace(s, meta={**s.meta, "answers": ("(A) x" if i % 2 else "B",)}) for i, s in enumerate(samples())
    ]
    training = [replace(s, turns=(s.turns[0], Turn("assistant", "The answer is A."))) for s in samples()]
    task = replace(TASK, section=replace(TASK.section, match="choice"))
    assert task.run(MODEL, asked, baseline=baseline_of(training))["accuracy"].chance == pytest.approx(0.5)
    assert TASK.run(MODEL, asked, baseline=baseline_of(training))["accuracy"].chance == 0


def test_the_soft_accuracy_needs_ten_answers():
    task = replace(TASK, section=replace(TASK.section, match="vqa_soft"))
    ten = [replace(s, meta={**s.meta, "answers": ("one",) * 3 + ("red",) * 7}) for s in samples()]
    assert task.run(MODEL, ten)["accuracy"].value == pytest.approx((0.9 + 5) / 6)
    with pytest.raises(UserError, match="answers/ten-answers") as error:
        task.run(MODEL, [*ten[:2], *samples()[2:]])
    assert len(error.value.problems) == 4


def test_a_task_without_a_source_is_a_problem(tiny):
    recipe = tiny("evaluate.tasks={x: {kind: questions}, terms: {}, restore: {}}")
    found = [
        problem for name in ("x", "terms", "restore") for problem in _task(recipe, name).problems(recipe)
    ]
    assert [p.code for p in found] == ["evaluate/no-data"] * 3 and "evaluate.tasks.x" in found[0].where


def _task(recipe, name):
    from lmmkit.evaluate.kinds import tasks_of

    return tasks_of(recipe)[name]


def test_the_figures_of_the_probe_are_remarks():
    gain = Figure(value=0.125, low=-0.05, high=0.3, n=8)
    figures = {
        "accuracy": gain, "visual_gain": gain, "leakage": gain, "changed_blank": Figure(value=0.5, n=8),
        "image_attention": Figure(value=0.2, chance=0.1, n=8),
        "object_attention": Figure(value=0.15, chance=0.05, n=4),
    }  # fmt: skip
    assert QuestionsTask("answers", Task(data="x")).remarks(figures) == [
        "visual_gain +12.5 (-5.0 to +30.0)", "leakage +12.5 (-5.0 to +30.0)",
        "changed_blank 50.0; image_attention 20.0, chance 10.0; object_attention 15.0, chance 5.0",
    ]  # fmt: skip
    assert QuestionsTask("answers", Task(data="x")).remarks({"accuracy": gain}) == []
