"""Places of learned tokens: where each kind of place is, and what truncation keeps."""

from __future__ import annotations

from typing import get_args

import pytest

from lmmkit.api.layout import Insert, InsertAt, Layout, Span, insert_tokens, row_count, text, truncate
from lmmkit.api.sample import Image

LOOK = 7
CHAT = (
    text((1,), "bos"),
    text((5, LOOK), "user"),
    Span(kind="image", n=4, image=Image("a")),
    Span(kind="image", n=4, image=Image("b")),
    text((6,), "user"),
    text((LOOK, 9, LOOK, 2), "response", supervised=True),
    text((5,), "user"),
    text((8, 2, LOOK), "response", supervised=True),
    text((4,), "user"),
)


def insert(layout: Layout, *edits: tuple[str, Insert]) -> str:
    """Returns the layout with inserts as text: ids, `I` for an image, the token's name for each learned row."""
    words = []
    for span in insert_tokens(layout, edits, lambda token: {"<look>": LOOK}[token]):
        assert len(span.ids) in (0, span.n)
        words += {"text": span.ids, "image": ("I",), "learned": (span.token_name,) * span.n}[span.kind]
    return " ".join(map(str, words))


PLACED = {
    "start": "1 r r 5 7 I I 6 7 9 7 2 5 8 2 7 4",
    "before_image": "1 5 7 r r I r r I 6 7 9 7 2 5 8 2 7 4",
    "after_image": "1 5 7 I r r I r r 6 7 9 7 2 5 8 2 7 4",
    "before_response": "1 5 7 I I 6 r r 7 9 7 2 5 8 2 7 4",
    "after_response": "1 5 7 I I 6 7 9 7 2 r r 5 8 2 7 r r 4",
    "after_token": "1 5 7 r r I I 6 7 r r 9 7 r r 2 5 8 2 7 r r 4",
    "end": "1 5 7 I I 6 7 9 7 2 5 8 2 7 4 r r",
}


def at(place: str, name: str = "r", n: int = 2) -> tuple[str, Insert]:
    return "p", Insert(place, name, n, "<look>" if place == "after_token" else None)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", get_args(InsertAt))
def test_each_place(place):
    assert insert(CHAT, at(place)) == PLACED[place]


def test_places_are_those_of_the_layout_before_all_edits_and_equal_ones_keep_the_order():
    for first in PLACED:
        for second in PLACED:
            both = insert(CHAT, at(first, "x", 1), at(second, "y", 1))
            assert both.replace(" x", "") == insert(CHAT, at(second, "y", 1))
            assert both.replace(" y", "") == insert(CHAT, at(first, "x", 1))
            if first == second:
                assert "x y" in both and "y" not in both.replace("x y", "")
    assert insert(CHAT, at("after_image", "x", 1), at("before_image", "y", 1)).startswith(
        "1 5 7 y I x y I x 6"
    )
    assert insert(CHAT, at("before_image", "x", 1), at("after_image", "y", 1)).startswith(
        "1 5 7 x I x y I y 6"
    )


def test_a_cut_span_keeps_all_but_its_rows():
    parts = insert_tokens(CHAT, [at("after_token")], lambda token: LOOK)
    answers = [s for s in parts if s.role == "response"]
    assert [s.ids for s in answers] == [(LOOK,), (9, LOOK), (2,), (8, 2, LOOK)]
    assert all(s.supervised and s.kind == "text" and s.n == len(s.ids) for s in answers)
    assert [s.supervised for s in parts if s.kind == "learned"] == [False] * 4


def test_without_images_answers_and_tokens_there_are_no_places_there():
    words = (text((5, 6), "user"),)
    for place in ("before_image", "after_image", "after_response", "after_token"):
        assert insert(words, at(place)) == "5 6"
    assert insert(words, at("before_response")) == insert(words, at("end")) == "5 6 r r"
    assert insert(words, at("start")) == "r r 5 6"


def plain_truncate(layout: Layout, limit: int) -> int:
    """Returns how many rows remain, row by row: the largest beginning that cuts no image and no learned span."""
    ends, total = [], 0
    for span in layout:
        ends += range(total + 1, total + span.n + 1) if span.kind == "text" else [total + span.n]
        total += span.n
    return max([0, *(end for end in ends if end <= limit)])


@pytest.mark.parametrize("place", ["before_image", "after_image", "after_response", "after_token"])
def test_truncation_cuts_neither_an_image_nor_learned_tokens_in_the_middle(place):
    layout = insert_tokens(CHAT, [at(place, n=3)], lambda token: LOOK)
    for limit in range(row_count(layout) + 2):
        cut = truncate(layout, limit)
        assert row_count(cut) == plain_truncate(layout, limit)
        assert all(span.n in (3, 4) for span in cut if span.kind != "text")


@pytest.mark.parametrize("place", ["start", "before_response", "end"])
def test_truncation_makes_space_for_learned_tokens_that_every_view_has(place):
    layout = insert_tokens(CHAT, [at(place, n=3)], lambda token: LOOK)
    rest = tuple(span for span in layout if span.kind != "learned")
    for limit in range(3, row_count(layout) + 2):
        cut = truncate(layout, limit)
        assert sum(span.n for span in cut if span.kind == "learned") == 3
        assert row_count(cut) == 3 + plain_truncate(rest, limit - 3)
