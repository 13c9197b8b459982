"""The rules that compare answers of one's own tasks."""

from __future__ import annotations

import pytest

from lmmkit.evaluate.questions.matching import MATCHES, first_yes_or_no, letter


@pytest.mark.parametrize(("answer", "found"), [
    ("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("B. a red cat", "B"), ("B) cat", "B"), ("(c) x", "C"),
    ("The answer is B.", "B"), ("the answer: (d)", "D"), ("Option C", None), ("a red cat", None), ("Both", None),
    ("", None), ("I think so", None), ("A cat", None),
])  # fmt: skip
def test_a_letter_is_found_where_one_is_named(answer, found):
    assert letter(answer) == found


@pytest.mark.parametrize(("answer", "found"), [
    ("Yes", "yes"), ("no.", "no"), (" Yes, there is", "yes"), ("NO!", "no"), ("not", None), ("Nothing", None), ("", None),
])  # fmt: skip
def test_first_yes_or_no_is_the_first_word(answer, found):
    assert first_yes_or_no(answer) == found


@pytest.mark.parametrize(("match", "answer", "right", "score"), [
    ("exact", " red\n", ["red"], 1.0), ("exact", "Red", ["red"], 0.0), ("exact", "blue", ["red", "blue"], 1.0),
    ("normalised", "Two dogs.", ["2 dogs"], 1.0), ("normalised", "dog", ["dogs"], 0.0),
    ("vqa_soft", "The Dog", ["dog"] * 2 + ["cat"] * 8, 0.6), ("vqa_soft", "cat", ["dog"] * 2 + ["cat"] * 8, 1.0),
    ("choice", "B. cat", ["B"], 1.0), ("choice", "cat", ["B"], 0.0), ("choice", "cat", ["cat"], 0.0),
    ("yes_no", "Yes, it is.", ["yes"], 1.0), ("yes_no", "maybe", ["maybe"], 0.0), ("exact", "", [""], 1.0),
])  # fmt: skip
def test_a_rule_compares_parsed_forms(match, answer, right, score):
    assert MATCHES[match](answer, right) == score
