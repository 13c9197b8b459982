"""Whole training steps: ours compared with transformers', and ours with ours.

pytest benches/test_steps.py --benchmark-json=out.json && python benches/summary.py out.json
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 pytest ... for both sides on an allocator that keeps its memory.
"""

from __future__ import annotations

import pytest
import transformers as hf

from benches.pairs import compare, keeps_memory
from benches.workload import our_step, peer_step, work

HOW = {
    "sdpa": "SDPA, no maps",
    "eager": "every pass eager with maps",
    "switched": "eager in the pass whose maps are read",
}
# case: config, method, peer's way, decoder frozen, gate, target
AGAINST_TRANSFORMERS = {
    "llava-L": ("L", "llava", "sdpa", False, 1.2, 1.4),
    "llava-S": ("S", "llava", "sdpa", False, 1.1, 1.25),
    "llava-L-frozen": ("L", "llava", "sdpa", True, None, None),
    "guided-L": ("L", "guided", "eager", False, None, None),
    "direct-L": ("L", "direct", "eager", False, *((1.7, 2.1) if keeps_memory() else (2.3, 3.0))),
    "direct-L-switched": ("L", "direct", "switched", False, None, None),
    "direct-L-unguided": ("L", "direct", "sdpa", False, None, None),
    "direct-L-frozen": ("L", "direct", "eager", True, None, None),
    "direct-S": ("S", "direct", "eager", False, None, None),
    "finetune-T": ("T", "finetune", "eager", False, None, None),
}


@pytest.mark.parametrize("case", AGAINST_TRANSFORMERS)
def test_step_against_transformers(case, benchmark):
    config, method, how, frozen, gate, target = AGAINST_TRANSFORMERS[case]
    made = work(config, method, frozen=frozen)
    ours, peer = our_step(made), peer_step(made, how)
    a, b = ours(), peer()
    same = how != "sdpa" or method == "llava"  # else the peer leaves the guided loss out
    diff = abs(a - b) / abs(b)
    assert not same or diff < 1e-5, (a, b)
    found = compare(ours, peer)
    benchmark.extra_info.update(
        found, sense="at least", gate=gate, target=target, loss_diff=diff if same else None,
        peer=f"transformers {hf.__version__}: {HOW[how]}", rows=len(made.batch()),
    )  # fmt: skip
    benchmark.pedantic(ours, rounds=1)


# case: the plain work, the work that costs more, gate, target
OVERHEAD = {
    "guided-L": (("L", "llava", False), ("L", "guided", False), 1.05, 1.02),
    "guided-T": (("T", "llava", False), ("T", "guided", False), None, None),
    "guided-S": (("S", "llava", False), ("S", "guided", False), None, None),
    "direct-stage1-L": (("L", "llava", True), ("L", "direct", True), 2.5, 2.25),
    "direct-stage2-T": (("T", "llava", False), ("T", "finetune", False), 2.6, 2.35),
}


@pytest.mark.parametrize("case", OVERHEAD)
def test_cost_over_plain_llava(case, benchmark):
    (config, method, frozen), (_, more, _), gate, target = OVERHEAD[case]
    plain, dear = work(config, method, frozen=frozen), work(config, more, frozen=frozen)
    step = our_step(plain)
    found = compare(step, our_step(dear))
    benchmark.extra_info.update(
        found, sense="at most", gate=gate, target=target, loss_diff=None, peer=f"lmmkit, {method} of the same samples",
        rows=len(dear.batch()), plain_rows=len(plain.batch()),
    )  # fmt: skip
    benchmark.pedantic(step, rounds=1)


def test_one_pass_over_three_of_ours(benchmark):
    """Compares shared prefixes with none; the losses are equal."""
    shared, apart = (work("L", "direct", share=share) for share in (True, False))
    ours, peer = our_step(shared), our_step(apart)
    a, b = ours(), peer()
    assert abs(a - b) / abs(b) < 1e-5
    benchmark.extra_info.update(
        compare(ours, peer), sense="at least", gate=None, target=None, loss_diff=abs(a - b) / abs(b),
        peer="lmmkit, every view a sequence of its own", rows=len(shared.batch()), peer_rows=len(apart.batch()),
    )  # fmt: skip
    benchmark.pedantic(ours, rounds=1)
