"""The part of a run that all its stages share: its folder, its processes, its logs and the request to stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lmmkit.plan.prepare import Prepared
from lmmkit.recipe import to_mapping
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.distributed.process_group import Ranks
from lmmkit.training.monitoring.board import Board
from lmmkit.training.monitoring.metrics_log import MetricsLog
from lmmkit.training.monitoring.null_logger import NullLogger
from lmmkit.training.signals import Interrupted, Stop


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Holds what all stages of a run share on this rank. Only the first rank of a run logs. `dropped` counts what
    all steps so far left out or cut, on all ranks."""

    prepared: Prepared
    run: RunFolder
    ranks: Ranks
    device: torch.device
    stop: Stop
    metrics: MetricsLog | NullLogger = field(default_factory=NullLogger)
    board: Board | NullLogger = field(default_factory=NullLogger)
    dropped: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def logging(self, step: int, *, resume: bool) -> Iterator[RunContext]:
        """Opens the logs of a run that continues after `step`, and yields the context with them.

        On a resume it removes the records after `step`, because those steps will run again.
        """
        if not self.ranks.first:
            yield self
            return
        terms = dict.fromkeys(
            ("next_token", *(t.name for plan in self.prepared.plans.values() for t in plan.terms))
        )
        with (
            MetricsLog(self.run.metrics) as metrics,
            Board(self.run.tb, step + 1 if resume else None, terms) as board,
        ):
            if resume:
                metrics.truncate(step)
            if resume and self.run.anomalies.is_file():
                with MetricsLog(self.run.anomalies) as anomalies:
                    anomalies.truncate(step)
            observers = self.prepared.instances.registry
            observers.started(str(self.run.path), to_mapping(self.prepared.recipe), step)
            yield replace(self, metrics=metrics, board=board)

    def log(self, record: Mapping[str, Any]) -> None:
        """Writes the record of a step to metrics.jsonl, TensorBoard and observers. TensorBoard gets the number of the
        stage in addition, from 0."""
        self.metrics.write(record)
        scalars = {name: value for name, value in record.items() if isinstance(value, float)}
        stage = float(list(self.prepared.recipe.stages).index(record["stage"]))
        self.board.scalars(record["step"], {"stage": stage, **scalars})
        if self.ranks.first:
            self.prepared.instances.registry.logged(record["step"], scalars)

    def stop_requested(self) -> bool:
        """Returns whether a signal has stopped any rank; the same on all. Every rank must call it."""
        signum = self.ranks.all_reduce_max(self.stop.requested or 0)
        self.stop.requested = signum or self.stop.requested
        return signum > 0

    def poll(self) -> None:
        """Raises `Interrupted` on all ranks if a signal has stopped any. Every rank must call it."""
        if self.stop_requested():
            raise Interrupted
