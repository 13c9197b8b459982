"""The benchmarks by name."""

from __future__ import annotations

from lmmkit.evaluate.benchmarks.benchmark import Benchmark
from lmmkit.evaluate.benchmarks.gqa import Gqa
from lmmkit.evaluate.benchmarks.llava_wild import LlavaWild
from lmmkit.evaluate.benchmarks.mm_vet import MmVet
from lmmkit.evaluate.benchmarks.mmbench import MMBench
from lmmkit.evaluate.benchmarks.mme import Mme
from lmmkit.evaluate.benchmarks.mmmu import Mmmu
from lmmkit.evaluate.benchmarks.pope import Pope
from lmmkit.evaluate.benchmarks.scienceqa import ScienceQa
from lmmkit.evaluate.benchmarks.seed import SeedBench
from lmmkit.evaluate.benchmarks.textvqa import TextVqa
from lmmkit.evaluate.benchmarks.vizwiz import VizWiz
from lmmkit.evaluate.benchmarks.vqav2 import VqaV2

BENCHMARKS: dict[str, type[Benchmark]] = {
    each.name: each
    for each in (
        Gqa, LlavaWild, MMBench, Mme, Mmmu, MmVet, Pope, ScienceQa, SeedBench, TextVqa, VizWiz, VqaV2
    )
}  # fmt: skip
