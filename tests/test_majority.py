"""The majority baseline: by question, by type, over all; and its ties."""

from __future__ import annotations

from lmmkit.majority import Majority

TRAINING = [
    ("how many?", "count", "two"), ("how many?", "count", "one"), ("how many?", "count", "one"),
    ("which colour?", "colour", "red"), ("what colour?", "colour", "blue"), ("is it?", "", "yes"), ("is it so?", "", "yes"),
    ("is it really?", "", "yes"),
]  # fmt: skip


def test_the_most_common_answer_to_the_same_question():
    baseline = Majority(TRAINING)
    assert baseline.answer("how many?", "count") == "one"
    assert baseline.answer("how many?", "colour") == "one", "the question comes before the type"


def test_a_new_question_gets_the_answer_of_its_type_and_else_of_all():
    baseline = Majority(TRAINING)
    assert baseline.answer("how many more?", "count") == "one"
    assert baseline.answer("how many more?", "size") == "yes"
    assert baseline.answer("how many more?") == "yes"


def test_a_tie_is_alphabetical():
    assert Majority(TRAINING).answer("another?", "colour") == "blue"
    assert Majority(reversed(TRAINING)).answer("another?", "colour") == "blue"


def test_without_training_there_is_no_answer():
    assert Majority([]).answer("how many?", "count") is None
