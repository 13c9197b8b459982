"""The majority baseline: the score of a model that knows the training answers and reads no image."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable


class Majority:
    """Answers a question with its most common training answer.

    A question that is not in training gets the most common answer of its type, and one of a new type or
    without a type ("") the most common of all. At a tie the first answer in alphabetical order is taken.
    """

    def __init__(self, training: Iterable[tuple[str, str, str]]):
        """`training`: the (question, type, answer) of each training question."""
        counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for question, kind, answer in training:
            for key in _keys(question, kind):
                counts[key][answer] += 1
        self._answers = {key: _most_common(answers) for key, answers in counts.items()}

    def answer(self, question: str, kind: str = "") -> str | None:
        """Returns the answer to a question; None if there was no training question."""
        return next((self._answers[key] for key in _keys(question, kind) if key in self._answers), None)


def _keys(question: str, kind: str) -> list[tuple[str, str]]:
    return [("question", question), *([("type", kind)] if kind else []), ("all", "")]


def _most_common(answers: Counter[str]) -> str:
    return min(answers, key=lambda answer: (-answers[answer], answer))
