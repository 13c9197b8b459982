"""Memory of a step in bytes: ours compared with transformers', the guided loss with none."""

import pytest
import torch
import transformers as hf

from benches import peak
from benches.pairs import exact
from benches.test_steps import HOW
from benches.workload import work

# case: config, method, peer's way, gate, target (times less)
PEAKS = {
    "direct-L": ("L", "direct", "eager", 2.5, 3.3),
    "llava-L": ("L", "llava", "sdpa", None, None),
    "direct-S": ("S", "direct", "eager", None, None),
}


@pytest.mark.parametrize("case", PEAKS)
def test_peak_of_a_step(case, benchmark):
    config, method, how, gate, target = PEAKS[case]
    ours, theirs = peak.of("step", "ours", config, method), peak.of("step", how, config, method)
    benchmark.extra_info.update(
        exact(theirs / ours), sense="at least", gate=gate, target=target, loss_diff=None, bytes=ours,
        peer_bytes=theirs, peer=f"transformers {hf.__version__}: {HOW[how]}",
    )  # fmt: skip
    benchmark.pedantic(lambda: None, rounds=1)


def saved(config: str, method: str) -> int:
    """Returns the bytes that the forward pass keeps for the backward pass, each storage once."""
    made = work(config, method)
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    owned = {p.untyped_storage().data_ptr() for p in made.ours.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = made.ours(made.batch())
        total = sum(n for at, n in kept.items() if at not in owned)
        sum(out.sums.values()).backward()
    return total


@pytest.mark.parametrize("config", ["L", "T", "S"])
def test_saved_by_the_guided_loss(config, benchmark):
    plain, guided = saved(config, "llava"), saved(config, "guided")
    gate, target = (1.02, 1.0) if config == "L" else (None, None)
    benchmark.extra_info.update(
        exact(guided / plain), sense="at most", gate=gate, target=target, loss_diff=None, bytes=guided,
        peer_bytes=plain, peer="lmmkit without the guided loss",
    )  # fmt: skip
    benchmark.pedantic(lambda: None, rounds=1)
