"""The answers that a figure is the mean of, against a list by hand."""

from __future__ import annotations

import pytest

from lmmkit.evaluate.answers.groups import in_group, scored
from lmmkit.evaluate.answers.schema import Answer


def answer(id, condition="own", *, images=("i.png",), score: float | None = 1.0, **groups):
    return Answer(
        task="t", split="", data="d", id=id, row=0, condition=condition, question="?", images=images, cluster="c",
        prompt_sha="p", raw="x", score=score, groups=groups,
    )  # fmt: skip


ANSWERS = [
    answer("a", type="colour", prior="usual"), answer("a", "blank", type="colour", prior="usual"),
    answer("b", type="usual", prior="other"), answer("c", images=(), type="place", field="colour"),
    answer("d", type="place", score=None), answer("e", field="shape"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("figure", "ids"),
    [
        ("accuracy", "abce"), ("accuracy_blank", "ac"), ("accuracy/colour", "a"), ("accuracy/place", "c"),
        ("accuracy_blank/place", "c"), ("accuracy/usual", "a"), ("accuracy/shape", "e"), ("accuracy/none", ""),
        ("changed_blank", None), ("image_attention", None),
    ],
)  # fmt: skip
def test_the_answers_of_a_figure(figure, ids):
    found = scored(ANSWERS, figure)
    assert (None if found is None else "".join(found)) == ids
    if found and "a" in found:
        assert found["a"].condition == ("blank" if "blank" in figure else "own")


def test_a_group_of_another_field_counts_where_no_type_and_no_prior_has_its_name():
    assert [each.id for each in ANSWERS if in_group(ANSWERS, "shape")(each)] == ["e"]
    assert [each.id for each in ANSWERS if in_group(ANSWERS, "colour")(each)] == ["a", "a"]
