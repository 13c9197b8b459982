"""Fields of views and needs that have another type than they declare are faults of the plugin, not tracebacks."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest

from lmmkit.api import AttnMass, AttnTo, HiddenAt, Image, LogProb, Sample, Select, Turn, View, VisionAt
from lmmkit.plugin_calls.forms import wrong_need, wrong_view

SAMPLE = Sample(
    key="a", turns=(Turn("user", "what", images=1), Turn("assistant", "it")), images=(Image("a.png"),)
)


def view(**fields) -> View:
    return View(sample=replace(SAMPLE, **fields))


def turned(**fields) -> View:
    return view(turns=(replace(SAMPLE.turns[0], **fields), SAMPLE.turns[1]))


def pictured(**fields) -> View:
    return view(images=(replace(SAMPLE.images[0], **fields),))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (view(key=3), "`key`"),
        (view(meta=None), "`meta`"),
        (view(system=None), "`system`"),
        (view(image_fit="square"), "`image_fit`"),
        (view(turns=(), images=()), "without a turn"),
        (view(images=()), "0 images"),
        (turned(supervised=None), "`Turn.supervised`"),
        (turned(supervised=1), "`Turn.supervised`"),
        (turned(places="0"), "`Turn.places`"),
        (turned(places=(0, 1)), "`Turn.places` [0, 1]"),
        (turned(places=(9,)), "`Turn.places` [9]"),
        (turned(places=(-1,)), "`Turn.places` [-1]"),
        (turned(images=True), "`Turn.images`"),
        (turned(role="human"), "turn"),
        (pictured(path=3), "`Image.path`"),
        (pictured(edit="flip"), "`Image.edit`"),
        (pictured(part=(1, 2, 3)), "`Image.part`"),
        (pictured(cell=(1, 2, 3)), "`Image.cell`"),
        (View(sample=SAMPLE, labels={1: 1}), "name of a label"),
        (View(sample=SAMPLE, labels={"": 1}), "name of a label"),
        (View(sample=SAMPLE, labels=[1]), "labels"),
        (SAMPLE, "a list with a Sample"),
    ],
)
def test_a_view_with_a_wrong_field(wrong, word):
    found = wrong_view(wrong)
    assert found is not None and word in found[0] and found[1]


@pytest.mark.parametrize(
    "right",
    [
        view(),
        view(
            meta=MappingProxyType({"box": (0.5, 1.0)}), turns=list(SAMPLE.turns), images=list(SAMPLE.images)
        ),
        turned(places=(4,)),
        turned(places=[0]),
        pictured(edit=abs, part=(0, 9)),
        pictured(cell=(0, "images", 1)),
        View(sample=SAMPLE, labels={"a/b": 1}),
    ],
)
def test_a_view_with_right_fields(right):
    assert wrong_view(right) is None


ANSWERS = Select(supervised=True)


@pytest.mark.parametrize(
    ("need", "word"),
    [
        (HiddenAt("image"), "`at`"),
        (HiddenAt(ANSWERS, layer=1.0), "`layer`"),
        (HiddenAt(ANSWERS, layer=True), "`layer`"),
        (AttnMass(q=ANSWERS, layers=3), "`layers`"),
        (AttnMass(q=ANSWERS, k="image"), "`k`"),
        (AttnTo(q=ANSWERS, heads=("0",)), "`heads`"),
        (LogProb(ANSWERS, model="ref"), "`model`"),
        (VisionAt(Select(kind="image"), detach="no"), "`detach`"),
        (HiddenAt(Select(supervised="yes")), "supervised"),
        (HiddenAt(Select(view=None)), "view"),
    ],
)
def test_a_need_with_a_wrong_field(need, word):
    found = wrong_need(need)
    assert found is not None and word in found[0] and found[1]


@pytest.mark.parametrize(
    "need",
    [
        HiddenAt(ANSWERS, layer=2),
        HiddenAt(ANSWERS, layer="last"),  # `plan/layers`
        AttnMass(q=ANSWERS, layers=(0, 1)),
        AttnTo(q=ANSWERS, heads=(1,)),
        LogProb(ANSWERS, model="reference"),
        HiddenAt(Select(role="assistant")),  # `plugin/select`
    ],
)
def test_a_need_with_right_fields(need):
    assert wrong_need(need) is None
