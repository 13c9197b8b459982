"""Which kept answers a figure of questions is the mean of, such as "accuracy_blank/TYPE"."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lmmkit.evaluate.answers.schema import CONDITIONS, GROUPS, OWN, Answer


def in_group(answers: Sequence[Answer], name: str) -> Callable[[Answer], bool]:
    """Returns the function that says whether an answer counts for the figure of the group `name`. Where a type and a
    prior have one name, the figure is that of the last one of `GROUPS`."""
    kinds = [kind for kind in GROUPS if any(answer.groups.get(kind) == name for answer in answers)][-1:]
    return lambda answer: name in (answer.groups.get(kind) for kind in kinds or answer.groups)


def scored(answers: Sequence[Answer], figure: str) -> dict[str, Answer] | None:
    """Returns the scored answers, by question, that a figure of their task is the mean of; None for other figures."""
    name, _, group = figure.partition("/")
    condition = name.removeprefix("accuracy_") if name != "accuracy" else OWN
    if condition not in CONDITIONS:
        return None
    counts = in_group(answers, group) if group else None
    # a question without an image has one answer for all conditions
    return {
        answer.id: answer
        for answer in answers
        if (answer.condition == condition or (answer.condition == OWN and not answer.images))
        and answer.score is not None
        and (counts is None or counts(answer))
    }  # fmt: skip
