"""Linear and cross entropy of a large vocabulary, 6 % of the rows supervised: time and peak memory."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from benches import peak
from benches.pairs import compare, exact
from lmmkit.model.cross_entropy import linear_cross_entropy

ROWS, WIDTH, SHARE = 1024, 512, 0.0625
VOCABS = {"32k": 32_000, "152k": 152_064}


def head(who: str, vocab: int, rows: int) -> Callable[[], float]:
    """Returns forward and backward of the head; `peer` computes the logits of all rows, as transformers does."""
    draw = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(ROWS, WIDTH, generator=draw).requires_grad_()
    weight_VD = (torch.randn(vocab, WIDTH, generator=draw) * WIDTH**-0.5).requires_grad_()
    target_T = torch.randint(vocab, (ROWS,), generator=draw)
    row_S = torch.randperm(ROWS, generator=draw)[:rows].sort().values
    label_T = torch.full((ROWS,), -100).index_copy(0, row_S, target_T[row_S])

    def ours() -> float:
        loss = linear_cross_entropy(hidden_TD[row_S], weight_VD, target_T[row_S]).mean()
        torch.autograd.grad(loss, (hidden_TD, weight_VD))
        return float(loss)

    def peer() -> float:
        loss = F.cross_entropy(F.linear(hidden_TD, weight_VD).float(), label_T, ignore_index=-100)
        torch.autograd.grad(loss, (hidden_TD, weight_VD))
        return float(loss)

    return ours if who == "ours" else peer


@pytest.mark.parametrize("rows", [int(ROWS * SHARE), ROWS], ids=["6%", "all"])
@pytest.mark.parametrize("vocab", VOCABS)
def test_head_time(vocab, rows, benchmark):
    ours, peer = (head(who, VOCABS[vocab], rows) for who in ("ours", "peer"))
    diff = abs(ours() - peer()) / peer()
    assert diff < 1e-5
    benchmark.extra_info.update(
        compare(ours, peer),
        sense="at least",
        gate=None,
        target=None,
        loss_diff=diff,
        peer="logits of all rows",
    )
    benchmark.pedantic(ours, rounds=1)


@pytest.mark.parametrize("rows", [int(ROWS * SHARE), ROWS], ids=["6%", "all"])
@pytest.mark.parametrize("vocab", VOCABS)
def test_head_peak_memory(vocab, rows, benchmark):
    ours, theirs = (peak.of("head", who, str(VOCABS[vocab]), str(rows)) for who in ("ours", "peer"))
    gate, target = (4.0, 4.6) if (vocab, rows) == ("152k", int(ROWS * SHARE)) else (None, None)
    benchmark.extra_info.update(
        exact(theirs / ours), sense="at least", gate=gate, target=target, loss_diff=None, bytes=ours,
        peer_bytes=theirs, peer="logits of all rows, weight gradient counted on both sides",
    )  # fmt: skip
    benchmark.pedantic(lambda: None, rounds=1)
