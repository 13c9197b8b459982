"""What a term gets from the core: labels, counts, and no call where there is nothing to count."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from lmmkit.api import AuxTask, Ctx, HiddenMean, Loss, Select
from lmmkit.api.batch import RowGather
from tests.support import paper_objective

IMAGES = Select(kind="image")


@dataclass(frozen=True, kw_only=True)
class Pooled(Loss):
    """Pulls the mean state of each view's image rows to zero, with the inherited count."""

    needs = (HiddenMean(IMAGES),)

    def value(self, ctx):
        return ctx[self.needs[0]].square().mean(-1).sum()


@dataclass(frozen=True, kw_only=True)
class Strict(AuxTask):
    """Fails if it is called without items, as a mean over nothing would."""

    needs = (HiddenMean(Select(view="strict", kind="image")),)

    def views(self, sample, rng):
        return []

    def value(self, ctx):
        raise AssertionError("called without items")


def test_the_inherited_count_of_a_mean_is_the_number_of_views():
    term = Pooled(name="pooled")
    samples = [*paper_objective.CAPTIONS, *paper_objective.CHATS]
    made, (batch, _) = paper_objective.objective(), paper_objective.packed(samples, terms=(term,))
    made.terms = (term,)
    ctx = made(batch).ctxs["pooled"]
    images = sum(1 for sample in samples if sample.images)
    assert batch.count["pooled"] == len(ctx[term.needs[0]]) == images < len(batch.gathers[term.needs[0]])


def test_a_term_without_items_is_not_called():
    term = Strict(name="strict")
    made, (batch, _) = (
        paper_objective.objective(),
        paper_objective.packed(paper_objective.CHATS, terms=(term,)),
    )
    made.terms = (term,)
    sums = made(batch).sums
    assert batch.count["strict"] == 0 and sums["strict"] == 0 < sums["next_token"]
    sums["strict"].add(sums["next_token"]).backward()


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


def test_a_value_count_counts_a_shared_view_once():
    batch, _ = paper_objective.packed(paper_objective.CAPTIONS)
    need = HiddenMean(IMAGES)
    gather = RowGather.of(torch.tensor([3, 4, 9, 3]), torch.tensor([0, 0, 2, 2]))
    batch.gathers[need] = gather  # type: ignore[index]
    assert batch.value_count(need) == 2
