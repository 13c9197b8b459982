"""What a term gets from the core: labels, and random numbers with a key."""

from __future__ import annotations

import pytest
import torch

from lmmkit.api import Ctx
from tests.support import paper_objective


def test_labels_of_no_views_are_empty_and_a_wrong_name_is_an_error():
    batch, _ = paper_objective.packed(paper_objective.CAPTIONS)
    empty, _ = paper_objective.packed([paper_objective.chat("t", "hi", "yes", images=0)])
    assert len(Ctx("image_order", batch, {}, None).label("permutation")) == batch.count["image_order"] > 0
    assert Ctx("image_order", empty, {}, None).label("permutation").shape == (0,)
    with pytest.raises(KeyError, match="plugin `image_order` reads label `order`"):
        Ctx("image_order", batch, {}, None).label("order")


def test_the_generator_of_a_term_is_keyed_by_seed_instance_step_and_first_sample():
    batch, _ = paper_objective.packed(paper_objective.CAPTIONS)
    other, _ = paper_objective.packed(paper_objective.CHATS)

    def draw(name="a", batch=batch, **when):
        return torch.rand(4, generator=Ctx(name, batch, {}, None, **when).rng)

    seen = [
        draw(), draw(step=1), draw(seed=1), draw("b"), draw(batch=other), draw(batch=None), draw(step=1, seed=1)
    ]  # fmt: skip
    assert len({tuple(x.tolist()) for x in seen}) == len(seen)
    assert torch.equal(draw(step=1), seen[1]) and torch.equal(draw(progress=0.5), seen[0])
    ctx = Ctx("a", batch, {}, None)
    assert (ctx.step, ctx.progress, ctx.dims) == (0, 1.0, None), "as in evaluation"
    twice = [torch.rand(4, generator=ctx.rng) for _ in range(2)]
    assert torch.equal(twice[0], seen[0]) and not torch.equal(*twice), "one generator for a micro-batch"
