"""Weights of the rows of the next-token loss, packed, against every view alone: values, and all gradients."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from lmmkit_zoo.cal import Blind, Cal
from lmmkit_zoo.focal import Focal
from torch import Tensor

from lmmkit import build
from lmmkit.api import LogProb, Select, TokenWeight
from lmmkit.data.packing import Packer
from lmmkit.model import cross_entropy
from lmmkit.objective import Objective
from lmmkit.recipe import Speed
from tests.support import dense_views, paper_objective
from tests.support.all_gradients import all_gradients, assert_alike
from tests.support.fake_cuda import on_card
from tests.support.low_rank import assert_factors, merged_into
from tests.support.paper_objective import DIMS, TEXT_ORDER
from tests.support.plain_twins import TWIN_CASES, off
from tests.support.tiny_model import SPEC, pack
from tests.test_objective_needs import with_adapters

SAMPLES = (*paper_objective.CAPTIONS, *paper_objective.CHATS)
MAIN, TARGETS = Select(), LogProb(Select())


@dataclass(frozen=True, kw_only=True)
class ByKey(TokenWeight):
    """Weights rows by a label of the sample; it reads nothing of the model."""

    def labels(self, sample, dims):
        return {"weight": weight_of_key(sample.key)}

    def weigh(self, ctx):
        batch = ctx.batch
        views_S = batch.predict.view_Q[batch.term_S == 0]
        return ctx.label("weight")[views_S]


def weight_of_key(key: str) -> float:
    return ord(key) % 3 / 2


FOCAL, CAL, BY_KEY = Focal(name="focal"), Cal(name="cal", low=0.02, high=0.4), ByKey(name="by_key")
EVERY = (FOCAL, CAL, BY_KEY)
BLIND = Blind(name="blind")


def packer(weighers, share: bool = True) -> Packer:
    needs = tuple(dict.fromkeys(need for each in weighers for need in each.needs))
    return Packer(
        image=SPEC, text_terms=("next_token", "text_order"), needs=needs, terms=(TEXT_ORDER,), share=share
    )


def made_and_batch(weighers=EVERY, dtype=torch.float64, *, share=True):
    made, packs = paper_objective.objective(dtype=dtype), packer(weighers, share)
    views = replace(
        paper_objective.views(), tasks=(TEXT_ORDER, BLIND), edits=(), needs=packs.needs, losses=weighers, dims=DIMS
    )  # fmt: skip
    samples = [packs.sized(views.fitting(sample, 0, Counter())) for sample in SAMPLES]
    made.terms, made.weighers = (TEXT_ORDER,), weighers
    return made, samples, pack(packs, samples)[0]


def dense_total(made: Objective, samples, weighers) -> Tensor:
    """Returns the sum of the weighted losses of the main views, and of the plain ones of the task's."""
    total = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        views = {m.view.name: dense_views.dense(made, m) for m in sample.members}
        logp = dense_views.log_prob([views["main"]], TARGETS)
        weight = torch.ones_like(logp)
        if FOCAL in weighers:
            weight = weight * (1 - logp.detach().exp()) ** 2
        if CAL in weighers and "blind" in views:
            blind = dense_views.log_prob([views["blind"]], LogProb(Select(view="blind")))
            weight = weight * (logp - blind).detach().clamp(0.02, 0.4)
        if BY_KEY in weighers:
            weight = weight * weight_of_key(views["main"].member.view.sample.key)
        total = total - (weight * logp).sum()
        if "text_order" in views:
            need = LogProb(Select(view="text_order"))
            total = total - dense_views.log_prob([views["text_order"]], need).sum()
    return total


def packed_total(made: Objective, batch) -> Tensor:
    sums = made(batch).sums
    return sums["next_token"] + sums["text_order"]


def assert_twin(made, samples, batch, limit: float) -> None:
    assert_alike(made, packed_total(made, batch), dense_total(made, samples, made.weighers), limit)


@pytest.mark.parametrize("recompute", ["none", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "limit", "share"), TWIN_CASES)
def test_packed_rows_have_the_weights_of_every_view_alone(recompute, share, dtype, limit):
    made, samples, batch = made_and_batch(dtype=dtype, share=share)
    assert batch.term_S.unique().tolist() == [0, 1] and (batch.term_S.diff() < 0).any(), "rows are mixed"
    build.set_layers(made, Speed(recompute=recompute))
    assert_twin(made, samples, batch, limit)


@pytest.mark.parametrize("weigher", EVERY, ids=lambda each: each.name)
def test_each_alone(weigher):
    made, samples, batch = made_and_batch((weigher,))
    assert (batch.head is None) == (weigher is BY_KEY)
    plain = dense_total(made, samples, ())
    assert off(packed_total(made, batch), plain) > 1e-3
    assert_twin(made, samples, batch, 1e-12)


def test_in_several_chunks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGIT_BYTES", 1)
    monkeypatch.setattr(cross_entropy, "LEAST_ROWS", 11)
    assert_twin(*made_and_batch(), 1e-12)


def test_under_low_rank_updates():
    made, samples, batch = made_and_batch()
    plain = merged_into(made_and_batch()[0], with_adapters(made))
    got, want = packed_total(made, batch), dense_total(plain, samples, EVERY)
    assert off(got, want) < 1e-12
    assert_factors(made, all_gradients(made, got), all_gradients(plain, want), 1e-12)


@dataclass(frozen=True, kw_only=True)
class Given(TokenWeight):
    """Gives each row one weight."""

    weight: float

    def weigh(self, ctx):
        return torch.full((ctx.batch.count["next_token"],), self.weight, dtype=torch.float64)


def test_weights_of_one_are_the_plain_loss_and_others_scale_the_sums_by_source():
    made, _, batch = made_and_batch((Given(name="given", weight=1.0),))
    batch = replace(batch, sources=("all",), source_S=(batch.term_S != 0).long())
    one, made.weighers = made(batch), ()
    plain = made(batch)
    assert all(torch.equal(one.sums[name], value) for name, value in plain.sums.items())
    made.weighers = (Given(name="given", weight=1.5), Given(name="other", weight=2.0))
    found = made(batch)
    assert off(found.sums["next_token"], 3 * plain.sums["next_token"]) < 1e-12
    assert torch.equal(found.sums["text_order"], plain.sums["text_order"])
    assert off(found.by_source["loss/all"], found.sums["next_token"]) < 1e-12


@pytest.mark.parametrize("weight", [-0.5, float("nan"), float("inf")])
def test_a_weight_that_may_not_be_makes_the_loss_nan(weight):
    made, _, batch = made_and_batch((Given(name="given", weight=weight),))
    sums = made(batch).sums
    assert sums["next_token"].isnan() and sums["text_order"].isfinite()


def test_several_micro_batches_are_one():
    made, samples, batch = made_and_batch()
    parts = [pack(packer(EVERY), samples[a:b])[0] for a, b in ((0, 1), (1, 4), (4, 6), (6, 6))]
    whole = all_gradients(made, packed_total(made, batch))
    sums = [all_gradients(made, packed_total(made, part)) for part in parts]
    for name, gradient in whole.items():
        assert off(sum(each[name] for each in sums), gradient) < 1e-12, name


def test_on_a_card_nothing_waits_for_the_device():
    made, _, batch = made_and_batch((FOCAL, CAL), torch.float32)
    made.compute = torch.bfloat16
    with on_card(made) as rules:
        loss = packed_total(made, batch.to("cuda"))
    assert rules.waited == [] and loss.device.type == "cuda"
