"""The zoo's tokens, and its views from other samples: what they insert, and what their terms measure."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lmmkit_zoo.directed_tokens import DirectedOrder, DirectedTokens
from lmmkit_zoo.negative_image import MatchToken, NegativeImage
from lmmkit_zoo.registers import Registers

from lmmkit.api import Image, Insert
from lmmkit.data.sources.other_samples import SourceSamples
from lmmkit.objective import total
from tests.support import dense_views, paper_objective
from tests.support.all_gradients import all_gradients
from tests.support.hf_weights import scramble
from tests.support.plain_twins import off
from tests.support.tiny_model import pack

SAMPLES = (*paper_objective.CAPTIONS, *paper_objective.CHATS)


@pytest.mark.parametrize("count", [1, 4, 16])
def test_registers_and_directed_tokens_have_as_many_rows_as_embeddings(count):
    for strategy, at in (
        (Registers(name="r", count=count), "after_image"),
        (DirectedTokens(name="d", count=count), "end"),
    ):
        (insert,) = strategy.edit(paper_objective.views().of(SAMPLES[0], 0)[0])
        assert insert == Insert(at, strategy.provides[0], count)
        assert strategy.modules(paper_objective.DIMS)().shape == (count, paper_objective.DIMS.width)
        assert strategy.check(paper_objective.DIMS) == ""
        assert replace(strategy, count=0).check(paper_objective.DIMS).startswith("count")
        assert replace(strategy, std=-0.1).check(paper_objective.DIMS).startswith("std")


def objective(*components):
    """Returns the tiny objective with these instances only; and its views and its packer."""
    made = paper_objective.objective()
    made.plugins = torch.nn.ModuleDict({c.name: c.modules(paper_objective.DIMS) for c in components})
    scramble(made.plugins, 3)
    made.double()
    tasks = tuple(c for c in components if hasattr(c, "needs"))
    strategies = tuple((c, frozenset(t.name for t in tasks)) for c in components if not hasattr(c, "needs"))
    made.terms = tasks
    views = replace(paper_objective.views(), tasks=tasks, edits=strategies)
    return made, views, paper_objective.packer(terms=tasks)


def packed(views, packer):
    among = SourceSamples.among(SAMPLES)
    members = [views.fitting(sample, 0, Counter(), among) for sample in SAMPLES]
    batch, _ = pack(replace(packer, text_terms=("next_token",)), [packer.sized(each) for each in members])
    return batch, [member for each in members for member in each]


@pytest.mark.parametrize("count", [1, 4, 16])
def test_the_order_is_read_from_the_mean_state_of_all_directed_tokens(count):
    order = DirectedOrder(name="order", grid=3, permutations=5)
    made, views, packer = objective(DirectedTokens(name="tokens", count=count), order)
    batch, members = packed(views, packer)
    value = made(batch).sums["order"]
    want = []
    for member in (m for m in members if m.view.name == "order"):
        state_D = dense_views.dense(made, member).hidden_TD[-count:].mean(0)
        label = torch.tensor(member.view.labels["permutation"])
        want.append(F.cross_entropy(made.plugins["order"](state_D), label))
    assert batch.count["order"] == len(want) == 5 and off(value, torch.stack(want).sum()) < 1e-12
    rows = all_gradients(made, value)["plugins.tokens.weight"].abs().amax(1)
    assert len(rows) == count and bool((rows > 0).all())


def test_matching_shows_each_sample_with_its_own_image_and_another_s():
    task = NegativeImage(name="negative")
    made, views, packer = objective(MatchToken(name="token"), task)
    batch, members = packed(views, packer)
    shown = [m.view for m in members if m.view.name == "negative"]
    assert len(shown) == 10 == batch.count["negative"], "not of the sample without an image"
    for own, other in zip(shown[::2], shown[1::2], strict=True):
        assert (own.labels, other.labels) == ({"match": 1.0}, {"match": 0.0})
        assert own.sample.turns == other.sample.turns and own.sample.images != other.sample.images
        assert other.sample.images[0] in [sample.images[0] for sample in SAMPLES if sample.images]
    outcome = made(batch)
    logits = torch.stack(
        [
            made.plugins["negative"](dense_views.dense(made, m).hidden_TD[-1])[0]
            for m in members
            if m.view.name == "negative"
        ]
    )
    labels = torch.tensor([view.labels["match"] for view in shown])
    want = F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum")
    assert off(outcome.sums["negative"], want) < 1e-6
    (accuracy,) = task.metrics(outcome.ctxs["negative"]).values()
    assert float(accuracy.total) == float(((logits > 0) == (labels > 0.5)).sum()) and accuracy.chance == 5
    assert task.chance(paper_objective.DIMS) == math.log(2)
    assert task.check(paper_objective.DIMS) == "" != replace(task, tries=0).check(paper_objective.DIMS)


def test_a_sample_without_another_image_makes_no_views():
    task, rng = NegativeImage(name="negative"), np.random.default_rng(0)
    sample = SAMPLES[0]
    alike = [replace(other, images=sample.images) for other in SAMPLES if other.images]
    assert (
        task.views(sample, rng, lambda n: (alike * 2)[:n])
        == []
        == task.views(SAMPLES[-1], rng, lambda n: alike)
    )
    two = replace(sample, images=(Image("/x.png"), Image("/y.png")))
    assert task.views(sample, rng, lambda n: [two] * n) == []
    assert len(task.views(sample, rng, lambda n: [*alike, two, SAMPLES[1]][:n])) == 2
    packed = [replace(sample, images=(Image("/x.tar", part=(at, 9)),)) for at in (0, 9)]
    assert [len(task.views(packed[0], rng, lambda n, i=i: [packed[i]] * n)) for i in (0, 1)] == [0, 2]


def test_matching_is_learned_on_few_samples():
    made, views, packer = objective(MatchToken(name="token"), NegativeImage(name="negative"))
    batch, _ = packed(views, packer)
    weights = {"next_token": 0.0, "negative": 1.0}
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    values = []
    for _ in range(60):
        sums = made(batch).sums
        optimizer.zero_grad()
        total(sums, weights, batch.count).backward()
        optimizer.step()
        values.append(float(sums["negative"].detach()) / batch.count["negative"])
    assert values[-1] < 0.5 * math.log(2) < values[0]
