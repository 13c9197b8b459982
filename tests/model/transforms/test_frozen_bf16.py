"""Matrices held in bfloat16: the same as matrices that were rounded, in value, gradient and graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from lmmkit.model.decoder import Decoder
from lmmkit.model.layers import FusedLinear
from lmmkit.model.transforms import lora
from lmmkit.model.transforms.frozen_bf16 import narrow_matrices
from lmmkit.objective import Objective
from tests.support import paper_objective
from tests.support.tiny_model import TEXT

PARTS = ("vision", "connector", "decoder")
BATCH, _ = paper_objective.packed(paper_objective.CHATS)
OPTIONS = {"r": 3, "alpha": 6.0, "dropout": 0.0, "targets": lora.TARGETS, "seed": 0}


def matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the weights of linears and embeddings."""
    kinds = FusedLinear | nn.Linear | nn.Embedding
    return {name: part.weight for name, part in module.named_modules() if isinstance(part, kinds)}


def made(*, narrow: tuple[str, ...] = (), rounded: tuple[str, ...] = (), compute=torch.float32) -> Objective:
    """Returns an objective without trainable weights, with parts kept narrow or merely rounded."""
    objective = paper_objective.objective(dtype=torch.float32).requires_grad_(False)
    objective.compute, lmm = compute, objective.lmm
    for part in rounded:
        for weight in matrices(getattr(lmm, part)).values():
            weight.data = weight.data.bfloat16().float()
    for part in narrow:
        narrow_matrices(getattr(lmm, part), autocast=compute != torch.float32)
    return objective


def loss_of(objective: Objective) -> torch.Tensor:
    return torch.stack(list(objective(BATCH).sums.values())).sum()


def supervised(objective: Objective, parameters) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Returns the loss and its gradients."""
    loss = loss_of(objective)
    return loss.detach(), list(torch.autograd.grad(loss, list(parameters)))


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("part", ["vision", "decoder"])
def test_a_narrow_part_is_a_rounded_one_bit_for_bit(part, compute):
    held, twin = made(narrow=(part,), compute=compute), made(rounded=(part,), compute=compute)
    found = []
    for objective in (held, twin):
        learning = objective.lmm.connector.requires_grad_(True).parameters()
        found.append(supervised(objective, learning))
    (loss, gradients), (want_loss, want_gradients) = found
    assert torch.equal(loss, want_loss) and float(loss) > 0
    assert all(torch.equal(a, b) for a, b in zip(gradients, want_gradients, strict=True))
    assert all(float(g.abs().max()) > 0 for g in gradients)
    assert {w.dtype for w in matrices(getattr(held.lmm, part)).values()} == {torch.bfloat16}
    names = [n for n, p in getattr(held.lmm, part).named_parameters() if p.ndim < 2]
    assert names and all(
        dict(getattr(held.lmm, part).named_parameters())[n].dtype == torch.float32 for n in names
    )


def test_under_autocast_narrow_products_are_those_of_wide_matrices():
    objectives = made(narrow=("connector",), compute=torch.bfloat16), made(compute=torch.bfloat16)
    losses = [loss_of(objective) for objective in objectives]
    assert torch.equal(*losses), "autocast rounds a wide matrix at every use"


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
def test_the_graph_remembers_no_widened_matrix(narrow):
    objective = made(narrow=PARTS if narrow else ())
    shapes = {tuple(sorted(w.shape)) for w in matrices(objective.lmm.decoder).values()}
    wide: list[tuple[int, ...]] = []

    def remember(tensor):
        if tuple(sorted(tensor.shape)) in shapes and tensor.dtype == torch.float32:
            wide.append(tuple(tensor.shape))
        return tensor

    lora.attach(objective.lmm.decoder, **OPTIONS)
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda t: t):
        loss_of(objective).backward()
    assert bool(wide) is not narrow


def test_low_rank_updates_stay_wide_and_are_rounded_once_when_merged():
    held, twin = made(narrow=("decoder",)), made(rounded=("decoder",))
    found = []
    for objective in (held, twin):
        adapters = lora.attach(objective.lmm.decoder, **OPTIONS)
        with torch.no_grad():
            for i, p in enumerate(adapters):
                p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        assert {p.dtype for p in adapters} == {torch.float32}
        found.append(supervised(objective, adapters))
        lora.merge(objective.lmm.decoder)
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    ours, theirs = matrices(held.lmm.decoder), matrices(twin.lmm.decoder)
    assert all(torch.equal(ours[n], theirs[n].bfloat16()) for n in theirs)
    assert not torch.equal(
        ours["blocks.0.mlp.down"], made(narrow=("decoder",)).lmm.decoder.blocks[0].mlp.down.weight
    )


def test_a_tied_head_stays_tied():
    decoder = Decoder(replace(TEXT, tied=True))
    narrow_matrices(decoder, autocast=False)
    assert decoder.head.weight is decoder.embed.weight and decoder.embed.weight.dtype == torch.bfloat16
    assert decoder.embed(torch.tensor([3])).dtype == torch.float32
    assert decoder.head(torch.zeros(1, TEXT.width)).dtype == torch.float32
