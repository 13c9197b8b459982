"""Figures of the probe: how much the image changes the answers, and what is known without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmmkit.evaluate.answers.schema import OWN, Answer, AnswerKey
from lmmkit.evaluate.bootstrap import paired_difference
from lmmkit.evaluate.task import Figure

DIFFERENCES = {
    "visual_gain": (OWN, "blank"),
    "visual_gain_black": (OWN, "black"),
    "visual_gain_swapped": (OWN, "swapped"),
    "leakage": ("blank", "none"),
}
"""Figures that are the mean score under one condition minus that under another, on the same items."""


def renamed(figure: str, control: str) -> str:
    """Returns the name of a figure under a control: "accuracy/colour" becomes "accuracy_blank/colour"."""
    name, slash, detail = figure.partition("/")
    return f"{name}_{control}{slash}{detail}"


def probe_figures(answers: Mapping[AnswerKey, Answer], controls: Sequence[str]) -> dict[str, Figure]:
    """Returns the differences between conditions, and the share of answers that each control changes.

    Only items with an image count, and for a difference only those that are scored under both conditions.
    """
    conditions = (OWN, *controls)
    figures: dict[str, Figure] = {}
    for name, (first, second) in DIFFERENCES.items():
        if first in conditions and second in conditions:
            pairs = [
                (a, b)
                for (condition, id), a in answers.items()
                if condition == first and (b := answers.get((second, id))) is not None
                and a.score is not None and b.score is not None
            ]  # fmt: skip
            if pairs:
                figures[name] = paired_difference(
                    [a.score or 0.0 for a, _ in pairs], [b.score or 0.0 for _, b in pairs],
                    [a.cluster or a.id for a, _ in pairs],
                )  # fmt: skip
    for control in controls:
        pairs = [
            (answers[OWN, id], b)
            for (condition, id), b in answers.items()
            if condition == control and (OWN, id) in answers
        ]
        if pairs:
            changed = sum((a.parsed or a.raw) != (b.parsed or b.raw) for a, b in pairs)
            figures[f"changed_{control}"] = Figure(value=changed / len(pairs), n=len(pairs))
    return figures
