"""Markers of a question: the form of LLaVA for its own records, places for all others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmmkit.api.sample import Turn
from lmmkit.data.image_markers import MARKER, marked, read_prompt, with_images
from lmmkit.errors import UserError


def llava(text: str) -> str:
    """Returns a question with one image as LLaVA trains on it: its markers removed, one put in front."""
    if MARKER not in text:
        return text
    return (MARKER + "\n" + text.replace(MARKER, "").strip()).strip()


@pytest.mark.parametrize(
    "text",
    ["<image>\nWhat?", "What?\n<image>", "<image>", " <image>What? ", "What? <image> ", "<image> x <image>"],
)
def test_one_image_at_an_end_is_read_as_by_llava(text):
    turn = with_images(text, 1)
    assert turn.places == () and turn.images == 1 and marked(turn).strip() == llava(text)


@given(st.lists(st.sampled_from([MARKER, "a", " ", "\n", "b c"]), max_size=8))
def test_no_word_and_no_image_is_lost_or_moved(parts):
    text = "".join(parts)
    count = text.count(MARKER)
    turn = with_images(text, count)
    assert turn.images == count and MARKER not in turn.text
    assert "".join(turn.text.split()) == "".join(text.replace(MARKER, "").split())
    if turn.places:
        assert marked(turn) == text.strip()
    inside = bool(text.replace(MARKER, "").strip()) and not text.lstrip().startswith(MARKER)
    if count > 1 and inside:
        assert turn.places, "several images after the first word keep their places"


def test_markers_of_a_prompt_are_images_at_their_places():
    asked = (Turn("user", "a <image> b"), Turn("assistant", "<image>"), Turn("user", "<image>\nc", 1))
    assert read_prompt(asked, 2) == (Turn("user", "a  b", 1, (2,)), asked[1], Turn("user", "c", 1))
    for turns, images in (
        ((Turn("user", "x", 2),), 2),
        ((Turn("user", "x"),), 1),
        ((Turn("user", "x <y>", 1, (2,)),), 1),
    ):
        assert read_prompt(turns, images) == turns, "without markers nothing changes"


@pytest.mark.parametrize(
    ("texts", "counted", "images"),
    [
        (["<image> x"], [0], 0), (["<image><image> x"], [1], 1), (["<image> x"], [2], 2),
        (["x", "y", "<image>"], [1, 0, 0], 1), (["<image><image> x"], [0], 1), (["<image> x"], [0], 2),
    ],
)  # fmt: skip
def test_markers_that_do_not_match_the_images_of_a_prompt_are_refused(texts, counted, images):
    turns = [
        Turn(("user", "assistant")[i % 2], text, n)
        for i, (text, n) in enumerate(zip(texts, counted, strict=True))
    ]
    with pytest.raises(UserError, match="chat/image-markers"):
        read_prompt(turns, images)


def test_a_text_without_images_is_left_alone():
    assert with_images(" x <image> ", 0) == Turn("user", " x <image> ")
    assert marked(Turn("assistant", "x")) == "x"
