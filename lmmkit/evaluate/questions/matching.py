"""The rules by which a task of one's own compares an answer with the right ones: `match` in a recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lmmkit.evaluate.vqa_text import m4c, m4c_accuracy

LETTER = re.compile(
    r"^\(?([A-Za-z])(?:[).:,]|\s*$)|\b(?:answer|option)\s*(?:is|:)\s*\(?([A-Za-z])\b", re.IGNORECASE
)
FIRST_WORD = re.compile(r"[A-Za-z]+")


def parsed_form(match: str, answer: str) -> str | None:
    """Returns the form of an answer that a rule compares; None if the answer has none."""
    return PARSERS[match](answer)


def letter(answer: str) -> str | None:
    """Returns the option letter that an answer names: "B", "(B)", "B. text", "The answer is B"."""
    found = LETTER.search(answer.strip())
    return next(group for group in found.groups() if group).upper() if found else None


def first_yes_or_no(answer: str) -> str | None:
    """Returns the first word if it is yes or no."""
    found = FIRST_WORD.search(answer)
    word = found.group().lower() if found else ""
    return word if word in ("yes", "no") else None


def _any(match: str) -> Callable[[str, Sequence[str]], float]:
    def score(answer: str, right: Sequence[str]) -> float:
        parsed = parsed_form(match, answer)
        return float(parsed is not None and parsed in [parsed_form(match, each) for each in right])

    return score


PARSERS: dict[str, Callable[[str], str | None]] = {
    "exact": str.strip,
    "normalised": m4c,
    "vqa_soft": m4c,
    "choice": letter,
    "yes_no": first_yes_or_no,
}
MATCHES: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact": _any("exact"),
    "normalised": _any("normalised"),
    "vqa_soft": m4c_accuracy,
    "choice": _any("choice"),
    "yes_no": _any("yes_no"),
}
TEN = ("vqa_soft",)  # rules that need ten right answers, one of each annotator
