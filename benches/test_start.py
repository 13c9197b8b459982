"""Start of a process: the import, and the first step over later ones.

pytest benches/test_start.py --benchmark-json=out.json && python benches/summary.py out.json
For information: no gate.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import transformers as hf

from benches.pairs import compare, machine
from benches.workload import our_step, peer_step, work

OURS = "import lmmkit.training.run"
PEER = "from transformers import LlavaForConditionalGeneration, Trainer"


def importing(code: str) -> Callable[[], object]:
    """Starts a new process that only imports."""
    return lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_import(benchmark):
    ours, peer = importing(OURS), importing(PEER)
    benchmark.extra_info.update(
        compare(ours, peer), sense="at least", gate=None, target=None, loss_diff=None,
        peer=f"transformers {hf.__version__}: LLaVA and its Trainer",
    )  # fmt: skip
    benchmark.pedantic(ours, rounds=1)


def seconds(step: Callable[[], float]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def test_first_step(benchmark):
    """Runs one pair: a process has one first step."""
    made = work("S", "llava")
    ours, peer = our_step(made), peer_step(made, "sdpa")
    first, peer_first = seconds(ours), seconds(peer)
    later, peer_later = (min(seconds(step) for _ in range(5)) for step in (ours, peer))
    ratio = peer_first / first
    benchmark.extra_info.update(
        machine(), ratio=ratio, low=ratio, high=ratio, pairs=1, sense="at least", gate=None, target=None,
        loss_diff=None, seconds=first, peer_seconds=peer_first, over_later=first / later,
        peer_over_later=peer_first / peer_later, peer=f"transformers {hf.__version__}: SDPA, no maps",
    )  # fmt: skip
    benchmark.pedantic(ours, rounds=1)
