"""Figures of the probe: how much the image changes the answers, and what is known without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmmkit.evaluate.answers.schema import OWN, Answer, AnswerKey
from lmmkit.evaluate.answers.scorer import Scorer
from lmmkit.evaluate.benchmarks.benchmark import Item, Verdict
from lmmkit.evaluate.bootstrap import paired_difference, paired_gain
from lmmkit.evaluate.task import Figure

DIFFERENCES = {
    "visual_gain": (OWN, "blank"),
    "visual_gain_black": (OWN, "black"),
    "visual_gain_swapped": (OWN, "swapped"),
    "visual_gain_empty": (OWN, "empty"),
    "leakage": ("blank", "none"),
}
"""Figures under one condition minus the same ones under another, on the same items: of the mean score, and as
"visual_gain/f1" of a figure that is no mean of scores."""


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


def gains_of_sums(
    items: Sequence[Item], scorer: Scorer, verdicts: Mapping[str, Sequence[Verdict]]
) -> dict[str, Figure]:
    """Returns the differences of the figures in `scorer.sums`, by clusters. `verdicts`: of all items, by condition."""
    sums = {condition: scorer.sums(items, several) for condition, several in verdicts.items()}
    clusters = [item.cluster or item.id for item in items]
    return {
        f"{name}/{figure}": paired_gain(sums[first][figure], sums[second][figure], clusters)
        for name, (first, second) in DIFFERENCES.items()
        if first in sums and second in sums
        for figure in sums[first]
    }
