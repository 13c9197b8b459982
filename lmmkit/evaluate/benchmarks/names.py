"""The benchmarks by name."""

from __future__ import annotations

from lmmkit.evaluate.benchmarks.benchmark import Benchmark
from lmmkit.evaluate.benchmarks.llava_wild import LlavaWild
from lmmkit.evaluate.benchmarks.mm_vet import MmVet

BENCHMARKS: dict[str, type[Benchmark]] = {each.name: each for each in (LlavaWild, MmVet)}
