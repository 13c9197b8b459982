"""The count of a term, and no call where there is nothing to count."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lmmkit.api import AuxTask, HiddenMean, Loss, Select
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


def test_a_value_count_counts_a_shared_view_once():
    batch, _ = paper_objective.packed(paper_objective.CAPTIONS)
    need = HiddenMean(IMAGES)
    gather = RowGather.of(torch.tensor([3, 4, 9, 3]), torch.tensor([0, 0, 2, 2]))
    batch.gathers[need] = gather  # type: ignore[index]
    assert batch.value_count(need) == 2
