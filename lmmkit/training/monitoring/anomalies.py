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
from lmmkit.training.triggers import Position

SPIKE_WINDOW = 128  # finite steps that a spike is compared with, as in OLMo-core
FEWEST = 64  # of them, the minimum for a comparison
SIGMAS = 6.0
SKIPPED_IN_A_ROW = 3  # steps without an update that end a run
AMONG = 1000  # steps, in which
SKIPPED_IN_ALL = 10  # steps without an update end a run


@dataclass
class SpikeDetector:
    """Detects anomalies. Holds losses and norms of recent finite steps, and the skipped step numbers."""

    losses: deque[float] = field(default_factory=lambda: deque(maxlen=SPIKE_WINDOW))
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=SPIKE_WINDOW))
    skipped: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, state: Mapping[str, Sequence] | None) -> SpikeDetector:
        """Returns a detector with the given `state`; without one, an empty detector."""
        detector = cls()
        if state is not None:
            detector.losses.extend(state["losses"])
            detector.norms.extend(state["norms"])
            detector.skipped = list(state["skipped"])
        return detector

    def state(self) -> dict[str, list]:
        """Returns the state for a checkpoint, so that a resumed run detects the same spikes."""
        return {"losses": list(self.losses), "norms": list(self.norms), "skipped": self.skipped}

    def detect(self, step: int, report: StepReport) -> tuple[str, list[str]] | None:
        """Returns the kind of anomaly in step `step` of the stage, and its figures; None if there is none."""
        loss, norm = report.loss, report.grad_norm
        if loss is None or norm is None:  # an empty step
            return None
        if not report.finite:
            self.skipped = [s for s in self.skipped if s > step - AMONG] + [step]
            figures = {"loss": loss, "grad_norm": norm}
            figures |= {f"terms/{name}": v for name, v in report.terms.items() if v is not None}
            return "not-finite", [name for name, value in figures.items() if not math.isfinite(value)]
        watched = (("loss", loss, self.losses), ("grad_norm", norm, self.norms))
        high = [name for name, value, before in watched if _is_spike(value, before)]
        for _, value, before in watched:
            before.append(value)
        return ("spike", high) if high else None

    def too_many(self, step: int) -> bool:
        """Returns whether the run must end at this step because of too many steps without an update."""
        in_a_row = self.skipped[-SKIPPED_IN_A_ROW:] == list(range(step - SKIPPED_IN_A_ROW + 1, step + 1))
        return in_a_row or (self.skipped[-1:] == [step] and len(self.skipped) >= SKIPPED_IN_ALL)


def _is_spike(value: float, before: Sequence[float]) -> bool:
    if len(before) < FEWEST:
        return False
    return value > statistics.fmean(before) + SIGMAS * statistics.pstdev(before)


def record(
    at: Position, kind: str, figures: list[str], report: StepReport, keys: Mapping[str, list[str]]
) -> dict[str, Any]:
    """Returns a record for anomalies.jsonl. JSON has no NaN, so values that are not finite become text."""
    return {
        "step": at.step, "stage": at.stage, "kind": kind, "of": figures, "loss": _plain(report.loss),
        "grad_norm": _plain(report.grad_norm),
        "terms": {name: _plain(value) for name, value in report.terms.items()}, "records": keys,
    }  # fmt: skip


def sample_keys(pipeline: Pipeline, index: int) -> dict[str, list[str]]:
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
    where: str, detector: SpikeDetector, report: StepReport, keys: Mapping[str, list[str]]
) -> Problem:
    """Returns the problem of too many steps without an update."""
    shown = ", ".join(key for each in keys.values() for key in each)[:300]
    got = (
        f"loss {report.loss}, gradient norm {report.grad_norm} on {shown}; "
        f"{len(detector.skipped)} of the last {AMONG} steps updated nothing"
    )
    return NOT_FINITE.at(where, got=got, in_a_row=SKIPPED_IN_A_ROW - 1, most=SKIPPED_IN_ALL - 1, window=AMONG)


def _plain(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
