"""Answers to look at."""

from __future__ import annotations

from dataclasses import replace

from lmmkit.evaluate.answers.choose import WIDTH, as_text, chosen
from lmmkit.evaluate.answers.schema import Answer

RIGHT = Answer(
    task="t", split="s", data="d", id="1", row=0, condition="own", question="What is it?\nOne word.", images=("/a/i.jpg",),
    cluster="i", groups={"type": "colour"}, prompt_sha="p", raw="red", parsed="red", gold=["red", "red"], score=1.0,
)  # fmt: skip
WRONG = replace(RIGHT, id="2", raw="Blue.", parsed="blue", score=0.0, hit_max_tokens=True, majority="green")
NONE = replace(RIGHT, id="3", raw="", parsed=None, score=None)
ALL = [RIGHT, replace(RIGHT, condition="blank"), WRONG, replace(WRONG, condition="none", parsed="red"), NONE]


def ids(which) -> list[str]:
    return [found["own"].id for found in chosen(ALL, which)]


def test_answers_are_chosen():
    assert ids("wrong") == ["2"] and ids("changed") == ["2"] and ids("unparsed") == ["3"]
    assert ids("all") == ["1", "2", "3"]


def test_an_answer_is_shown_with_all_that_belongs_to_it():
    (found,) = chosen(ALL, "wrong")
    text = "\n".join(as_text(found))
    for part in ("2  type: colour", "What is it? One word.", "i.jpg", "right     red", "majority  green", "own       Blue.",
                 "(read as blue)", "[0]", "(cut off)", "none      Blue."):  # fmt: skip
        assert part in text, part
    assert "red | red" not in text, "equal right answers are one"


def test_lines_are_narrow_and_hold_no_terminal_codes():
    long = replace(WRONG, raw="word " * 80 + "\x1b[31m", question="why " * 90)
    lines = list(as_text({"own": long}))
    assert max(map(len, lines)) <= WIDTH and "\x1b" not in "".join(lines)
