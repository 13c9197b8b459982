"""Blank and swapped images."""

from __future__ import annotations

import pytest

from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import Image, Sample
from lmmkit.data.images import Blank
from lmmkit.evaluate.controls import blank, control_problems, controls_of, swapped, with_controls
from lmmkit.recipe import EmptyImage
from tests.support.scene_questions import samples

SPEC = ImageSpec(size=8, grid=(1, 1), width=1)


def test_swapped_keeps_the_number_of_images():
    names = [("a",), (), ("b", "c"), ("d",), ("e", "f"), ()]
    mixed = [Sample(key=str(i), turns=(), images=tuple(map(Image, paths))) for i, paths in enumerate(names)]
    got = [tuple(image.path for image in s.images) for s in swapped(mixed)]
    assert got == [("d",), (), ("e", "f"), ("a",), ("b", "c"), ()]


def test_swapped_gives_every_question_the_image_of_another_scene():
    for before, after in zip(samples(), swapped(samples()), strict=True):
        assert before.images != after.images and before.turns == after.turns
    paths = [s.images[0].path for s in swapped(samples())]
    assert paths == ["b.jpg", "b.jpg", "c.jpg", "c.jpg", "a.jpg", "a.jpg"]


def test_blank_edits_every_image_and_makes_them_one():
    made = blank(samples(), edit=Blank("mean"))
    assert {s.images for s in made} == {(Image("a.jpg", Blank("mean")),)}
    two = [Sample(key="0", turns=()), Sample(key="1", turns=(), images=(Image("b"), Image("c")))]
    assert [len(s.images) for s in blank(two, edit=Blank("mean"))] == [0, 2]
    assert blank(two[:1], edit=Blank("mean")) == two[:1]


def test_controls_are_added_to_the_samples_by_name():
    asked = samples()
    edit = Blank("mean", SPEC.mean, SPEC.std)
    made = with_controls(asked, ("swapped", "blank"), SPEC)
    assert made == {"own": asked, "swapped": swapped(asked), "blank": blank(asked, edit=edit)}
    assert with_controls(asked, (), SPEC) == {"own": asked}
    (black, none) = (with_controls(asked, (name,), SPEC)[name] for name in ("black", "none"))
    assert black[0].images[0].edit.kind == "black"
    assert all(s.images == () and [t.images for t in s.turns] == [0, 0] for s in none)
    assert [t.text for s in none for t in s.turns] == [t.text for s in asked for t in s.turns]
    with pytest.raises(KeyError, match="blanc"):
        with_controls(asked, ("blanc",), SPEC)


def test_an_empty_image_takes_the_place_of_every_image():
    asked = [
        *samples(),
        Sample(key="two", turns=(), images=(Image("b"), Image("c"))),
        Sample(key="none", turns=()),
    ]
    made = with_controls(asked, ("swapped", EmptyImage(empty="/x/empty.png")), SPEC)
    assert list(made) == ["own", "swapped", "empty"]
    for before, after in zip(asked, made["empty"], strict=True):
        assert after.images == (Image("/x/empty.png"),) * len(before.images) and after.turns == before.turns


def test_the_path_of_an_empty_image_starts_at_the_root(tiny, scenes):
    recipe = tiny("evaluate.controls=[blank, {empty: images/nothing.png}]")
    assert controls_of(recipe) == ("blank", EmptyImage(empty=str(scenes / "images/nothing.png")))
    (problem,) = control_problems(recipe)
    assert (
        problem.code == "image/file"
        and "evaluate.controls" in problem.where
        and "nothing.png" in problem.where
    )
    image = next(path.name for path in (scenes / "images" / "heldout").iterdir())
    assert control_problems(tiny(f"evaluate.controls=[{{empty: images/heldout/{image}}}]")) == []
    assert control_problems(tiny("evaluate.controls=[none]")) == []
