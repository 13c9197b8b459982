"""Training steps with the layers compiled around their attention (`speed.compile`) and without.

pytest benches/test_compiled.py --benchmark-json=out.json && python benches/summary.py out.json
For information: no gate. Compiling is warm-up; its seconds are in `first_seconds`.
"""

from __future__ import annotations

import time

import pytest
import torch

from benches.pairs import compare
from benches.workload import our_step, work
from lmmkit import build
from lmmkit.recipe import Speed

# case: config, method, decoder frozen
CASES = {
    "llava-L": ("L", "llava", False),
    "llava-S": ("S", "llava", False),
    "direct-L": ("L", "direct", False),
    "direct-L-frozen": ("L", "direct", True),
}


@pytest.mark.parametrize("case", CASES)
def test_compiled_layers(case, benchmark):
    config, method, frozen = CASES[case]
    compiled, plain = (work(config, method, frozen=frozen) for _ in range(2))
    build.set_layers(compiled.ours, Speed(compile=True))
    ours, peer = our_step(compiled), our_step(plain)
    start = time.perf_counter()
    a = ours()
    first, b = time.perf_counter() - start, peer()
    diff = abs(a - b) / abs(b)
    assert diff < 1e-5, (a, b)
    found = compare(ours, peer)
    benchmark.extra_info.update(
        found, sense="at least", gate=None, target=None, loss_diff=diff, first_seconds=first,
        peer="lmmkit, layers as they are written", rows=len(compiled.batch()),
    )  # fmt: skip
    benchmark.pedantic(ours, rounds=1)
    torch.compiler.reset()
