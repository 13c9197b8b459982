"""Exact match: accuracies by type and control, the baseline next to them, and the table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lmmkit.api.sample import Turn
from lmmkit.evaluate.exact_match import ExactMatch, baseline_of
from lmmkit.recipe import Task
from tests.support.scene_questions import samples

TASK = ExactMatch("answers", Task(data="heldout", max_new_tokens=3))


class StubModel:
    """Answers right on a.jpg, "red" elsewhere, and "one" on blank images."""

    class prepared:
        class dims:
            from lmmkit.api.model_info import ImageSpec

            image = ImageSpec(size=8, grid=(1, 1), width=1)

    def answer(self, groups, *, max_new_tokens):
        assert max_new_tokens == 3
        out = []
        for group in groups:
            assert len({view.sample.images for view in group}) == 1, "a group shares its image"
            for view in group:
                assert view.sample.turns[-1].role == "user", "the answer is not in the prompt"
                image = view.sample.images[0]
                first = view.sample.turns[-1].text.endswith("0")
                out.append("one" if image.edit or (image.path == "a.jpg" and first) else "red")
        return out


def measured(**more):
    return TASK.run(StubModel(), samples(), controls=("blank", "swapped"), **more)


def test_accuracy_is_counted_by_type_and_control():
    got = measured()
    assert got["accuracy"].value == pytest.approx(3 / 6) and got["accuracy"].n == 6
    assert got["accuracy_blank"].value == pytest.approx(2 / 6)
    assert got["accuracy_swapped"].value == pytest.approx(3 / 6)  # c/0 on a.jpg, and red twice
    assert got["accuracy/colour"].value == pytest.approx(2 / 3) and got["accuracy/colour"].n == 3
    assert got["accuracy_blank/count"].value == pytest.approx(2 / 3)
    assert all(figure.low <= figure.value <= figure.high for figure in got.values())
    details = ("", "/colour", "/count")
    assert list(got) == [f"accuracy{c}{d}" for c in ("", "_blank", "_swapped") for d in details]


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
    got = TASK.run(StubModel(), padded, baseline=baseline_of(padded))
    assert got == TASK.run(StubModel(), samples(), baseline=baseline_of(samples()))
    assert got["accuracy"].value > 0 and got["accuracy"].chance > 0


def test_white_space_around_questions_and_answers_changes_neither_model_nor_baseline():
    heldout = [replace(s, turns=(Turn("user", s.turns[0].text), s.turns[1])) for s in samples()]
    padded = [
        replace(
            s, turns=(Turn("user", f" {s.turns[0].text}\n", 1), Turn("assistant", f"\t{s.turns[1].text} "))
        )
        for s in samples()
    ]
    clean, found = (
        TASK.run(StubModel(), heldout, baseline=baseline_of(each)) for each in (samples(), padded)
    )
    assert found == clean and clean["accuracy"].chance > 0
    other = [replace(s, turns=(Turn("user", f"{s.turns[0].text}\n"), s.turns[1])) for s in samples()]
    assert TASK.run(Same(), other, baseline=baseline_of(samples())) == TASK.run(
        Same(), samples(), baseline=baseline_of(samples())
    )


class Same(StubModel):
    """Answers "red" with white space around it."""

    def answer(self, groups, *, max_new_tokens):
        return [" red\n" for group in groups for _ in group]


def test_without_samples_the_value_is_not_a_number():
    figure = TASK.run(StubModel(), [], baseline=baseline_of(samples()))["accuracy"]
    assert figure.n == 0 and figure.value != figure.value and figure.chance is None


def test_the_table_has_a_line_for_each_type_and_one_for_all():
    headings, *lines = TASK.table(measured(baseline=baseline_of(samples()[:2])))
    assert headings == ("questions", "image", "blank", "swapped", "majority", "n")
    assert [line[0] for line in lines] == ["colour", "count", "all"]
    assert lines[2][1].startswith("50.0 (") and lines[2][4:] == ("66.7", "6")
