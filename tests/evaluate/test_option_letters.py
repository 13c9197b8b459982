"""Letters are read from answers that are not only a letter."""

from __future__ import annotations

import pytest

from lmmkit.evaluate.option_letters import lenient_letter, lettered


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("b", "B"), (" B ", "B"), ("B.", "B"), ("B. blue", "B"), ("(B)", "B"), ("(B) blue", "B"),
        ("B) blue", "B"), ("B: blue", "B"), ("B, because", "B"), ("The answer is B", "B"), ("The answer is (B).", "B"),
        ("Answer: D", "D"), ("The correct answer: b", "B"), ("A.\nIt is red", "A"),
        ("A dog", None), ("blue", None), ("", None), ("E", None), ("E. green", None), ("Because", None),
        ("The answer is a dog", None), ("BB", None), ("1", None), ("the answer is E", None),
    ],
)  # fmt: skip
def test_letters_of_answers(answer, letter):
    assert lenient_letter(answer, "ABCD") == letter


def test_options_are_listed_as_llava_lists_them():
    assert lettered(["red", "blue"]) == "A. red\nB. blue"
