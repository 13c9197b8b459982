"""The benchmarks by name."""

from __future__ import annotations

from lmmkit.evaluate.benchmarks.benchmark import Benchmark

BENCHMARKS: dict[str, type[Benchmark]] = {}
