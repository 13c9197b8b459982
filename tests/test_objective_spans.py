"""Weights of characters of answers, packed, against every view alone, with learned tokens and truncation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmmkit import build
from lmmkit.api import TokenWeight
from lmmkit.errors import UserError
from lmmkit.objective import Objective
from lmmkit.recipe import Speed
from lmmkit.training.step import run_step
from tests import test_objective_token_weights as weights_of_rows
from tests.support import dense_views, paper_objective
from tests.support.all_gradients import all_gradients, assert_alike
from tests.support.fake_cuda import on_card
from tests.support.low_rank import assert_factors, merged_into
from tests.support.paper_objective import CAPTIONS, CHATS, DIMS, TEXT_ORDER, chat
from tests.support.plain_twins import TWIN_CASES, off
from tests.support.tiny_model import pack
from tests.test_objective_needs import with_adapters
from tests.test_objective_places import objective, strategies
from tests.test_objective_places import views as views_with
from tests.test_objective_token_weights import packed_total

ALIKE = (chat("g", "what?", "a cat sat"), chat("g2", "what?", "a cat ran"))  # they share a prefix
SAMPLES = (*CAPTIONS, *CHATS, *ALIKE)


@dataclass(frozen=True, kw_only=True)
class Letter(TokenWeight):
    """Weights each letter a, and the ends of answers; by the key of the sample too."""

    letter: str = "a"

    def spans(self, sample, text):
        ends = [(len(text), len(text) + 1, 0.25)]
        return [(i, i + 1, factor(sample.key)) for i, c in enumerate(text) if c == self.letter] + ends


def factor(key: str) -> float:
    return 1 + ord(key[0]) % 3 / 2


LETTER_A, LETTER_T = Letter(name="letter_a"), Letter(name="letter_t", letter="t")


def expected_weights(sample, weighers) -> list[float]:
    """Returns the weights of the targets of a sample's answers, one for each character."""
    found = []
    for turn in sample.turns:
        if turn.role == "assistant":
            before = "" if sample.template == "plain" else " "
            for c in before + turn.text:
                hits = sum(weigher.letter == c for weigher in weighers)
                found.append(factor(sample.key) ** hits)
            found.append(0.25 ** len(weighers))
    return found


def made_and_batch(weighers=(LETTER_A, LETTER_T), dtype=torch.float64, *, share=True, places=(), context=512):
    placed = strategies(*places)
    made = objective(placed, dtype=dtype)
    packer = paper_objective.packer(share=share, terms=(TEXT_ORDER,))
    views = replace(views_with(placed), tasks=(TEXT_ORDER,), losses=weighers, context=context, dims=DIMS)
    samples = [packer.sized(views.fitting(sample, 0, Counter())) for sample in SAMPLES]
    made.terms, made.weighers = (TEXT_ORDER,), weighers
    return made, samples, pack(packer, samples)[0]


def dense_total(made: Objective, samples, weighers) -> Tensor:
    """Returns the sum of the weighted losses of the main views, and of the plain ones of the task's, row by row."""
    losses = []
    for sized in samples:
        for member in sized.members:
            weights = expected_weights(member.view.sample, weighers if member.view.name == "main" else ())
            hidden_TD, row = dense_views.dense(made, member).hidden_TD, 0
            for span in member.layout:
                for i, id_ in enumerate(span.ids):
                    if span.supervised:
                        logits_V = made.lmm.decoder.head.weight @ hidden_TD[row + i - 1]
                        losses.append(weights.pop(0) * F.cross_entropy(logits_V, torch.tensor(id_)))
                row += span.n
    return torch.stack(losses).sum()


def assert_twin(made, samples, batch, limit: float) -> None:
    assert_alike(made, packed_total(made, batch), dense_total(made, samples, made.weighers), limit)


@pytest.mark.parametrize(("dtype", "limit", "share"), TWIN_CASES)
def test_packed_rows_have_the_weights_of_their_characters(share, dtype, limit):
    made, samples, batch = made_and_batch(dtype=dtype, share=share)
    assert batch.weight_S is not None and batch.head is None
    assert off(packed_total(made, batch), dense_total(made, samples, ())) > 1e-3
    assert_twin(made, samples, batch, limit)
    shared = len(batch) < sum(sum(s.n for s in m.layout) for sized in samples for m in sized.members)
    assert shared == share


@pytest.mark.parametrize("recompute", ["none", pytest.param("all", marks=pytest.mark.slow)])
def test_with_learned_tokens_everywhere_and_cut_answers(recompute):
    places = (
        "start",
        "before_image",
        "after_image",
        "before_response",
        "after_response",
        "after_token",
        "end",
    )
    made, samples, batch = made_and_batch(places=places, context=240)
    assert any(len(m.layout) and sum(s.n for s in m.layout) == 240 for s in samples for m in s.members)
    build.set_layers(made, Speed(recompute=recompute))
    assert_twin(made, samples, batch, 1e-12)


def test_weights_of_one_and_ranges_of_nothing_are_the_plain_loss():
    @dataclass(frozen=True, kw_only=True)
    class Given(TokenWeight):
        weights: tuple = ()

        def spans(self, sample, text):
            return [(0, len(text) + 1, w) for w in self.weights]

    made, _, plain = made_and_batch(())
    assert plain.weight_S is None
    for weights in ((), (1.0,), (4.0, 0.25)):
        _, _, batch = made_and_batch((Given(name="given", weights=weights),))
        assert (batch.weight_S is None) == (not weights)
        for name, value in made(plain).sums.items():
            assert torch.equal(made(batch).sums[name], value)
    doubled = made_and_batch((Given(name="given", weights=(2.0,)),))[2]
    one, two = made(plain).sums, made(doubled).sums
    assert one["next_token"] < two["next_token"] < 2 * one["next_token"], (
        "the space before an answer is not in it"
    )
    assert torch.equal(two["text_order"], one["text_order"])


@pytest.mark.parametrize("cuts", [(0, 8), (0, 1, 4, 8), (0, 2, 2, 3, 8)])
def test_divided_by_the_sum_of_the_weights(cuts):
    made, samples, _ = made_and_batch()
    packer = replace(paper_objective.packer(terms=(TEXT_ORDER,)), per_weight=True, sources=("all",))
    samples = [sized._replace(source="all") for sized in samples]
    step = [pack(packer, samples[a:b])[0] for a, b in pairwise(cuts)]
    factors = [w for sized in samples for w in expected_weights(sized.members[0].view.sample, made.weighers)]
    wanted = float(dense_total(made, [only_main(s) for s in samples], made.weighers).detach()) / sum(factors)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.0)
    weights = {"next_token": 2.0, "text_order": 0.0}
    found = run_step(made, optimizer, step, weights, clip=None, device=torch.device("cpu"), metrics=False)
    assert found.terms["next_token"] == pytest.approx(wanted, rel=1e-12)
    assert found.terms["loss/all"] == pytest.approx(wanted, rel=1e-12)
    assert found.loss == pytest.approx(2 * wanted, rel=1e-6), "the sum over micro-batches is in float32"
    whole = all_gradients(
        made, 2 * packed_total(made, pack(packer, [only_main(s) for s in samples])[0]) / sum(factors)
    )
    for name, p in made.named_parameters():
        assert off(torch.zeros_like(p) if p.grad is None else p.grad, whole[name]) < 1e-12, name


def only_main(sized):
    return sized._replace(members=sized.members[:1])


@pytest.mark.parametrize("weight", [0.0, 1e-3])
def test_small_sums_of_weights_are_the_divisor(weight):
    @dataclass(frozen=True, kw_only=True)
    class Small(TokenWeight):
        def spans(self, sample, text):
            return [(0, len(text) + 1, weight)]

    views = replace(paper_objective.views(), tasks=(), edits=(), losses=(Small(name="small"),), dims=DIMS)
    packer = replace(paper_objective.packer(terms=()), per_weight=True)
    batch, _ = pack(packer, [packer.sized(views.fitting(CAPTIONS[1], 0, Counter()))])
    assert batch.count["next_token"] == len("two dogs") + 1
    assert batch.count["weight/next_token"] == pytest.approx(9 * weight)
    made = paper_objective.objective()
    made.terms = ()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.0)
    weights = {"next_token": 1.0, "text_order": 0.0}
    found = run_step(made, optimizer, (batch,), weights, clip=None, device=torch.device("cpu"), metrics=False)
    plain, _ = pack(packer, [packer.sized(replace(views, losses=()).fitting(CAPTIONS[1], 0, Counter()))])
    want = run_step(made, optimizer, (plain,), weights, clip=None, device=torch.device("cpu"), metrics=False)
    assert found.empty == (weight == 0.0)
    if weight:
        assert found.loss == pytest.approx(want.loss, rel=1e-6)


@pytest.mark.parametrize("wrong", [-0.5, float("nan"), float("inf")])
def test_a_step_names_the_plugin_whose_weights_may_not_be(wrong):
    @dataclass(frozen=True, kw_only=True)
    class Wrong(TokenWeight):
        def weigh(self, ctx):
            return torch.ones(ctx.batch.count["next_token"]).index_fill(0, torch.tensor([1, 2]), wrong)

    made, _, batch = made_and_batch((Wrong(name="wrong"),))
    before = {name: p.clone() for name, p in made.named_parameters()}
    optimizer = torch.optim.SGD(made.parameters(), lr=1.0)
    weights = {"next_token": 1.0, "text_order": 1.0}
    with pytest.raises(UserError) as error:
        run_step(
            made, optimizer, (batch, batch), weights, clip=None, device=torch.device("cpu"), metrics=False
        )
    (problem,) = error.value.problems
    assert problem.code == "plugin/weights" and problem.where.startswith(
        "wrong.weigh, test_objective_spans.py:"
    )
    assert problem.got == f"4 such weights in the step of {2 * batch.count['next_token']} rows"
    assert all(torch.equal(before[name], p) for name, p in made.named_parameters())


def test_weights_from_needs_that_are_not_finite_are_not_the_plugin_s_fault():
    made, _, batch = weights_of_rows.made_and_batch((weights_of_rows.FOCAL,))
    with torch.no_grad():
        made.lmm.decoder.norm.weight.fill_(float("nan"))
    optimizer = torch.optim.SGD(made.parameters(), lr=1.0)
    weights = {"next_token": 1.0, "text_order": 1.0}
    report = run_step(
        made, optimizer, (batch,), weights, clip=None, device=torch.device("cpu"), metrics=False
    )
    assert not report.finite and report.bad_weights == {"focal": 0.0}


def test_together_with_weights_of_rows():
    @dataclass(frozen=True, kw_only=True)
    class Both(Letter):
        def weigh(self, ctx):
            return torch.full((ctx.batch.count["next_token"],), 3.0)

    made, _, batch = made_and_batch((LETTER_A,))
    one = made(batch).sums["next_token"]
    made.weighers = (LETTER_A, Both(name="letter_a"))
    assert off(made(batch).sums["next_token"], 3 * one) < 1e-12


def test_under_low_rank_updates():
    made, samples, batch = made_and_batch()
    plain = merged_into(made_and_batch()[0], with_adapters(made))
    got, want = packed_total(made, batch), dense_total(plain, samples, made.weighers)
    assert off(got, want) < 1e-12
    assert_factors(made, all_gradients(made, got), all_gradients(plain, want), 1e-12)


def test_several_micro_batches_are_one():
    made, samples, batch = made_and_batch()
    packer = paper_objective.packer(terms=(TEXT_ORDER,))
    parts = [pack(packer, samples[a:b])[0] for a, b in ((0, 1), (1, 4), (4, 8), (8, 8))]
    whole = all_gradients(made, packed_total(made, batch))
    sums = [all_gradients(made, packed_total(made, part)) for part in parts]
    for name, gradient in whole.items():
        assert off(sum(each[name] for each in sums), gradient) < 1e-12, name


def test_on_a_card_nothing_waits_for_the_device():
    made, _, batch = made_and_batch(dtype=torch.float32)
    with on_card(made) as rules:
        loss = packed_total(made, batch.to("cuda"))
    assert rules.waited == [] and loss.device.type == "cuda"
