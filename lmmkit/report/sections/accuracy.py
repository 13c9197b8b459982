"""Accuracy by question type: a forest plot of each run and of the differences, and where two runs agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lmmkit.evaluate.answers.schema import OWN
from lmmkit.evaluate.task import Figure
from lmmkit.report.asked import RIGHT, AskedRuns, score_of
from lmmkit.report.loaded_run import DRAWN
from lmmkit.report.sections.measures import half_width

SHOWN = (OWN, "blank", "swapped")
"""The conditions with a mark in the plot; results.json has all."""


@dataclass(frozen=True, kw_only=True)
class ForestRow:
    """Holds a row of the forest plot: the figures of each run by condition, and the differences to the first run.
    `kind`: the type of the questions, None for all."""

    label: str
    kind: str | None
    n: int
    figures: Sequence[dict[str, Figure | None]]
    chance: float | None
    differences: Sequence[Figure | None]


@dataclass(frozen=True, kw_only=True)
class ForestPlot:
    """Holds the section. `compared`: number of differences. `agree`: questions by (first right, second right)."""

    rows: Sequence[ForestRow]
    conditions: Sequence[str]
    compared: int
    reach: float
    agree: dict[tuple[bool, bool], int]


def forest_of(asked: AskedRuns) -> ForestPlot | None:
    """Returns the section; None without a headline that percent axes can show."""
    runs = asked.runs
    if not asked.conditions or not asked.in_shares:
        return None
    rows = []
    for kind in (None, *asked.kinds):
        drawn = runs if kind is None else runs[:DRAWN]
        figures = [{c: asked.headline(run, c, kind) for c in SHOWN} for run in drawn]
        own = [figure for each in figures if (figure := each[OWN])]
        differences = [
            asked.difference(0, i, score_of(OWN), kind) if asked.is_mean else None
            for i in range(1, len(drawn))
        ]
        rows.append(
            ForestRow(
                label=kind or "all questions", kind=kind, n=own[0].n if own else 0, figures=figures,
                chance=next((f.chance for f in own if f.chance is not None), None), differences=differences,
            )
        )  # fmt: skip
    every = [d for row in rows for d in row.differences]
    return ForestPlot(
        rows=rows, conditions=[c for c in SHOWN if c in asked.conditions], compared=sum(d is not None for d in every),
        reach=half_width(every), agree=_agreement(asked),
    )  # fmt: skip


def _agreement(asked: AskedRuns) -> dict[tuple[bool, bool], int]:
    """Returns how many questions both, one or neither of two runs has right; {} with other numbers of runs."""
    if len(asked.runs) != 2 or not asked.of:
        return {}
    score, found = score_of(OWN), Counter()
    for id, _, _ in asked.common(0, 1):
        a, b = score(asked.of[0], id), score(asked.of[1], id)
        if a is not None and b is not None:
            found[a >= RIGHT, b >= RIGHT] += 1
    return dict(found)
