"""The curves of training as data for the page's script, and the same numbers as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmmkit.report.loaded_run import DRAWN, LoadedRun, running_sums
from lmmkit.runs.files import finite

POINTS, OF_ONE = 12_000, 3_000
"""Most points of a curve of all runs together, and of one run. Longer curves are means of what is between."""
ROOM, FEWEST = 1_600_000, 50
LAST = 50  # logged steps of a stage whose mean is in the table
PLAIN = ("grad_norm", "lr", "tokens_per_second", "loss")
_Records = Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class StageEnd:
    """Holds a line of the table: the mean of a term over the last steps of a stage, in each run."""

    stage: str
    term: str
    cells: Sequence[float | None]
    chance: float | None


@dataclass(frozen=True, kw_only=True)
class Training:
    """Holds the section. `curves`: of each drawn run, for the script. `flagged`: (run, step with an anomaly)."""

    curves: Sequence[dict[str, Any]]
    ends: Sequence[StageEnd]
    flagged: Sequence[tuple[int, dict[str, Any]]]


def training_of(runs: Sequence[LoadedRun], *, room: int = ROOM) -> Training | None:
    """Returns the section; None if no run has logged a step.

    The curves have as many points as fit in `room` bytes, and at most `OF_ONE`.
    """
    drawn = [(i, run) for i, run in enumerate(runs[:DRAWN]) if run.steps]
    if not drawn:
        return None
    points = min(OF_ONE, POINTS // len(drawn))
    while len(json.dumps(curves := [_curves(i, run, points) for i, run in drawn])) > room and points > FEWEST:
        points //= 2
    flagged = [(i, step) for i, run in enumerate(runs) for step in _flagged(run)]
    return Training(curves=curves, ends=_ends(runs), flagged=flagged)


def _flagged(run: LoadedRun) -> list[dict[str, Any]]:
    return [
        {
            "step": int(a["step"]), "stage": str(a.get("stage", "")), "kind": str(a.get("kind", "")),
            "of": [str(each) for each in _listed(a.get("of", []))],
        }
        for a in run.anomalies
        if finite(a.get("step")) is not None
    ]  # fmt: skip


def _curves(number: int, run: LoadedRun, points: int) -> dict[str, Any]:
    """Returns the curves of a run: steps, tokens and minutes so far, stage, and each series, all of one length.

    A chance level that does not change is an object with its value and the first and last place where it is known.
    """
    steps = run.steps
    width = max(1, math.ceil(len(steps) / points))
    bins = [range(i, min(i + width, len(steps))) for i in range(0, len(steps), width)]
    last = [each[-1] for each in bins]
    tokens, seconds = ([run.every * x for x in running_sums(steps, key)] for key in ("tokens", "seconds"))
    stages = list(dict.fromkeys(str(s.get("stage")) for s in steps))
    names = [
        k
        for k in dict.fromkeys(k for s in steps for k in s)
        if k.startswith(("terms/", "chance/")) or k in PLAIN
    ]
    series: dict[str, Any] = {}
    for name in names:
        values = [_mean([steps[i].get(name) for i in each]) for each in bins]
        series[name] = _constant(values) if name.startswith("chance/") else values
    return {
        "name": run.name, "run": number, "stages": stages, "step": [int(steps[i]["step"]) for i in last],
        "tokens": [int(tokens[i]) for i in last], "minutes": [round(seconds[i] / 60, 3) for i in last],
        "stage": [stages.index(str(steps[each[0]].get("stage"))) for each in bins],
        "series": series | _validations(run, [int(steps[i]["step"]) for i in last]),
        "flagged": _flagged(run),
    }  # fmt: skip


def _validations(run: LoadedRun, ends: Sequence[int]) -> dict[str, list[float | None]]:
    """Returns the figures of validations, each at the first point of the curves that is not before it."""
    found: dict[str, list[float | None]] = {}
    for record in run.validations:
        place = next((i for i, step in enumerate(ends) if step >= record["step"]), None)
        if place is None:
            continue
        for name, value in record.items():
            if name.startswith("val/") and (number := finite(value)) is not None:
                found.setdefault(name, [None] * len(ends))[place] = _short(number)
    return found


def _ends(runs: Sequence[LoadedRun]) -> list[StageEnd]:
    rows = []
    for stage in dict.fromkeys(str(s.get("stage")) for run in runs for s in run.steps):
        last = [[s for s in run.steps if str(s.get("stage")) == stage][-LAST:] for run in runs]
        names = dict.fromkeys(k for each in last for s in each[-1:] for k in s if k.startswith("terms/"))
        for name in sorted(names, key=lambda k: k.count("/")):
            cells = [_mean([s.get(name) for s in each]) for each in last]
            chance = [_mean([s.get(name.replace("terms/", "chance/", 1)) for s in each]) for each in last]
            known = next((c for c in chance if c is not None), None)
            rows.append(StageEnd(stage=stage, term=name.removeprefix("terms/"), cells=cells, chance=known))
    return rows


def _mean(values: Sequence[object]) -> float | None:
    known = [number for value in values if (number := finite(value)) is not None]
    return _short(sum(known) / len(known)) if known else None


def _constant(values: list[float | None]) -> Any:
    known = {value for value in values if value is not None}
    if len(known) != 1:
        return values
    (value,) = known
    places = [i for i, each in enumerate(values) if each is not None]
    if len(places) != places[-1] - places[0] + 1:
        return values
    return {"value": value, "first": places[0], "last": places[-1]}


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
