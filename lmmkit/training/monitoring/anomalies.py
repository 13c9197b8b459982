"""Steps whose figures are out of order: what they are, what of them is recorded, when they are too many.

The figures are of the whole step, the same on every rank: so every rank comes to the same verdict
without asking. A step that is not finite updates nothing (`step.py`); a spike is only recorded,
for a run that left out what it did not expect would hide a fault in its data.
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

WINDOW = 128  # finite steps that a spike is measured against, as OLMo-core does
FEWEST = 64  # of them that must be there
SIGMAS = 6.0
IN_A_ROW = 3  # steps without an update after which a run ends
AMONG = 1000  # steps of which at most
MANY = 10  # were without one, less one


@dataclass
class SpikeDetector:
    """The last steps of a stage: losses and gradient norms of finite ones, numbers of the others."""

    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    skipped: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, state: Mapping[str, Sequence] | None) -> SpikeDetector:
        """As `state` said; without one, the watch of a stage that begins."""
        watch = cls()
        if state is not None:
            watch.losses.extend(state["losses"])
            watch.norms.extend(state["norms"])
            watch.skipped = list(state["skipped"])
        return watch

    def state(self) -> dict[str, list]:
        """For a checkpoint: a resumed run sees the same spikes."""
        return {"losses": list(self.losses), "norms": list(self.norms), "skipped": self.skipped}

    def see(self, step: int, report: StepReport) -> tuple[str, list[str]] | None:
        """What is out of order in step number `step` of the stage, and which figures; None: nothing."""
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
        """Whether the run has to end at this step, which was without an update."""
        in_a_row = self.skipped[-IN_A_ROW:] == list(range(step - IN_A_ROW + 1, step + 1))
        return in_a_row or (self.skipped[-1:] == [step] and len(self.skipped) >= MANY)


def _is_spike(value: float, before: Sequence[float]) -> bool:
    if len(before) < FEWEST:
        return False
    return value > statistics.fmean(before) + SIGMAS * statistics.pstdev(before)


def record(
    step: int, stage: str, kind: str, of: list[str], report: StepReport, rows: Mapping[str, list[str]]
) -> dict[str, Any]:
    """A line of anomalies.jsonl. JSON has no NaN: what is not finite stands as text."""
    return {
        "step": step, "stage": stage, "kind": kind, "of": of, "loss": _said(report.loss),
        "grad_norm": _said(report.grad_norm),
        "terms": {name: _said(value) for name, value in report.terms.items()}, "rows": rows,
    }  # fmt: skip


def rows_of(pipeline: Pipeline, index: int) -> dict[str, list[str]]:
    """The keys of the samples of optimizer step `index`, from 0, by source; of a row that is passed over,
    its place."""
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
