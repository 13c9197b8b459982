"""The interface of what scores answers: a benchmark, or a task of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from lmmkit.evaluate.benchmarks.benchmark import Item, Status, Verdict
from lmmkit.evaluate.task import Figure


class Scorer(Protocol):
    """Scores answers, as `Benchmark` does."""

    @property
    def name(self) -> str: ...
    @property
    def caveats(self) -> tuple[str, ...]: ...
    @property
    def normaliser(self) -> str: ...
    def verdict(self, item: Item, answer: str) -> Verdict: ...
    def figures(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]: ...
    def status(self, items: Sequence[Item]) -> Status: ...
    def upload(self, items: Sequence[Item], answers: Mapping[str, str]) -> Mapping[str, bytes]: ...
