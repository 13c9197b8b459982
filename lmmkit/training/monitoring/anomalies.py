"""Anomalous steps: how they are detected and recorded, and when there are too many.

The figures are those of the full step and equal on all ranks, so every rank decides the same without
communication. A step that is not finite updates nothing (`step.py`). A spike is only recorded: a run that
skipped unexpected steps would hide a fault in its data.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmmkit.data.pipeline import Pipeline
from lmmkit.errors import Problem, UserError
from lmmkit.errors.training import NOT_FINITE
from lmmkit.training.step import StepReport

WINDOW = 128  # finite steps that a spike is compared with, as in OLMo-core
FEWEST = 64  # of them, the minimum for a comparison
SIGMAS = 6.0
IN_A_ROW = 3  # steps without an update after which a run ends
AMONG = 1000  # steps, of which fewer than
MANY = 10  # may be without an update


@dataclass
class SpikeDetector:
    """Detects anomalies. Holds losses and norms of recent finite steps, and the skipped step numbers."""

    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    skipped: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, state: Mapping[str, Sequence] | None) -> SpikeDetector:
        """Returns a detector with the given `state`; without one, an empty detector."""
        watch = cls()
        if state is not None:
            watch.losses.extend(state["losses"])
            watch.norms.extend(state["norms"])
            watch.skipped = list(state["skipped"])
        return watch

    def state(self) -> dict[str, list]:
        """Returns the state for a checkpoint, so that a resumed run detects the same spikes."""
        return {"losses": list(self.losses), "norms": list(self.norms), "skipped": self.skipped}

    def see(self, step: int, report: StepReport) -> tuple[str, list[str]] | None:
        """Returns the kind of anomaly in step `step` of the stage, and its figures; None if there is none."""
        if not report.finite:
            self.skipped = [s for s in self.skipped if s > step - AMONG] + [step]
            figures = {"loss": report.loss, "grad_norm": report.grad_norm}
            figures |= {f"terms/{name}": v for name, v in report.terms.items() if v is not None}
            return "not-finite", [name for name, value in figures.items() if not math.isfinite(value)]
        seen = (("loss", report.loss, self.losses), ("grad_norm", report.grad_norm, self.norms))
        high = [name for name, value, before in seen if _is_spike(value, before)]
        for _, value, before in seen:
            before.append(value)
        return ("spike", high) if high else None

    def too_many(self, step: int) -> bool:
        """Returns whether the run must end at this step because of too many steps without an update."""
        in_a_row = self.skipped[-IN_A_ROW:] == list(range(step - IN_A_ROW + 1, step + 1))
        return in_a_row or (self.skipped[-1:] == [step] and len(self.skipped) >= MANY)


def _is_spike(value: float, before: Sequence[float]) -> bool:
    if len(before) < FEWEST:
        return False
    return value > statistics.fmean(before) + SIGMAS * statistics.pstdev(before)


def record(
    step: int, stage: str, kind: str, of: list[str], report: StepReport, rows: Mapping[str, list[str]]
) -> dict[str, Any]:
    """Returns a record for anomalies.jsonl. JSON has no NaN, so values that are not finite become text."""
    return {
        "step": step, "stage": stage, "kind": kind, "of": of, "loss": _said(report.loss),
        "grad_norm": _said(report.grad_norm),
        "terms": {name: _said(value) for name, value in report.terms.items()}, "rows": rows,
    }  # fmt: skip


def rows_of(pipeline: Pipeline, index: int) -> dict[str, list[str]]:
    """Returns the sample keys of optimizer step `index` (from 0) by source. A bad record is given by its
    place in the file."""
    found: dict[str, list[str]] = {}
    for k in range(index * pipeline.samples, min((index + 1) * pipeline.samples, pipeline.total)):
        source, _, row = pipeline.order.at(k)
        records = pipeline.sources[source]
        try:
            key = records[row].key
        except UserError:
            key = records.where(row)
        found.setdefault(source, []).append(key)
    return found


def exhausted(
    step: int, stage: str, watch: SpikeDetector, report: StepReport, rows: Mapping[str, list[str]]
) -> Problem:
    """Returns the problem of too many steps without an update."""
    keys = ", ".join(key for keys in rows.values() for key in keys)[:300]
    got = (
        f"loss {report.loss}, gradient norm {report.grad_norm} on {keys}; "
        f"{len(watch.skipped)} of the last {AMONG} steps updated nothing"
    )
    return NOT_FINITE.at(
        f"step {step}, stage {stage}", got=got, in_a_row=IN_A_ROW - 1, most=MANY - 1, window=AMONG
    )


def _said(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
