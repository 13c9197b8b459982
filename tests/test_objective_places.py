"""Learned tokens at each place, on the packed forest, against every view alone: loss, and all gradients."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmmkit import build
from lmmkit.api import Insert, LearnedTokens, TokenStrategy
from lmmkit.api.layout import InsertAt
from lmmkit.api.sample import View
from lmmkit.data.views import Views
from lmmkit.recipe import Speed
from tests.support import dense_views, paper_objective
from tests.support.all_gradients import all_gradients, gradient_errors
from tests.support.fake_cuda import on_card
from tests.support.hf_weights import scramble
from tests.support.plain_twins import off, show
from tests.support.tiny_model import pack
from tests.test_objective_needs import with_adapters

SAMPLES = (*paper_objective.CAPTIONS, *paper_objective.CHATS)


@dataclass(frozen=True, kw_only=True)
class Registers(TokenStrategy):
    """Two tokens at one place. Those of `after_token` are behind each letter a."""

    at: InsertAt
    provides: ClassVar[tuple[str, ...]] = ("register",)
    unread: ClassVar[bool] = True

    def edit(self, view):
        return [Insert(self.at, "register", 2, token="a" if self.at == "after_token" else None)]

    def modules(self, dims):
        return LearnedTokens(2, dims.width)


def strategies(*places: InsertAt) -> tuple[Registers, ...]:
    return tuple(Registers(name=f"registers_{place}", at=place) for place in places)


def views(placed: tuple[Registers, ...]) -> Views:
    made = paper_objective.views(context=512)
    return replace(made, edits=(*made.edits, *((strategy, None) for strategy in placed)))


def objective(placed: tuple[Registers, ...], **settings):
    """Returns the tiny objective with the modules of these strategies."""
    made = paper_objective.objective(**settings)
    for strategy in placed:
        made.plugins[strategy.name] = strategy.modules(paper_objective.DIMS)
    scramble(made.plugins, 2)
    return made.to(made.lmm.decoder.norm.weight.dtype)


def plain_loss(made, members) -> Tensor:
    """Returns the sum of the next-token losses of views alone, row by row."""
    losses = []
    for member in members:
        hidden_TD = dense_views.dense(made, member).hidden_TD
        row = 0
        for span in member.layout:
            for i, id_ in enumerate(span.ids):
                if span.supervised and member.view.supervision == "train":
                    logits_V = made.lmm.decoder.head.weight @ hidden_TD[row + i - 1]
                    losses.append(F.cross_entropy(logits_V, torch.tensor(id_)))
            row += span.n
    return torch.stack(losses).sum()


def assert_twin(made, placed: tuple[Registers, ...], limit: float, *, share: bool = True) -> None:
    packer = paper_objective.packer(share=share, terms=paper_objective.TERMS[2:])
    members = [views(placed).fitting(sample, 0, Counter()) for sample in SAMPLES]
    batch, _ = pack(packer, [packer.sized(each) for each in members])
    made.terms = paper_objective.TERMS[2:]
    sums = made(batch).sums
    got = sums["next_token"] + sums["text_order"]
    want = plain_loss(made, [member for each in members for member in each])
    assert off(got, want) < limit
    got_gradients, want_gradients = all_gradients(made, got), all_gradients(made, want)
    largest = max(float(g.abs().max()) for g in want_gradients.values())
    errors = gradient_errors(got_gradients, want_gradients)
    show("off_gradients", max(errors.values()))
    assert max(errors.values()) < limit, {name: e for name, e in errors.items() if e >= limit}
    for strategy in placed:
        moved = float(want_gradients[f"plugins.{strategy.name}.weight"].abs().max())
        assert (moved > 1e-6 * largest) == (strategy.at != "end"), (
            "rows attend to all tokens but those at the end"
        )


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("place", get_args(InsertAt))
def test_tokens_that_no_term_reads_are_trained_by_the_rows_that_attend_to_them(place, share):
    placed = strategies(place)
    assert_twin(objective(placed), placed, 1e-12, share=share)


@pytest.mark.parametrize("recompute", ["none", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_all_places_together(recompute, dtype, limit):
    placed = strategies(*get_args(InsertAt))
    made = objective(placed, dtype=dtype)
    build.set_layers(made, Speed(recompute=recompute))
    assert_twin(made, placed, limit)


def test_all_places_under_low_rank_updates():
    placed = strategies(*get_args(InsertAt))
    assert_twin(with_adapters(objective(placed)), placed, 1e-12)


def test_on_a_card_learned_tokens_at_all_places_do_not_wait_for_the_device():
    placed = strategies(*get_args(InsertAt))
    made, packer = objective(placed, dtype=torch.float32), paper_objective.packer(terms=())
    members = [views(placed).fitting(sample, 0, Counter()) for sample in SAMPLES]
    batch, _ = pack(packer, [packer.sized(each) for each in members])
    made.terms, made.compute = (), torch.bfloat16
    with on_card(made) as rules:
        outcome = made(batch.to("cuda"))
    assert rules.waited == [] and "next_token" in outcome.sums


def test_tokens_behind_an_image_are_in_the_shared_prefix():
    placed = strategies("after_image")
    packer, sample = paper_objective.packer(), paper_objective.CHATS[0]
    plain = packer.sized(paper_objective.views().fitting(sample, 0, Counter()))
    more = packer.sized(views(placed).fitting(sample, 0, Counter()))
    main, text_order = (m for m in more.members if m.view.name != "image_order")
    assert [sum(s.kind == "learned" for s in m.layout) for m in (main, text_order)] == [1, 1]
    assert more.size == plain.size + 2 * 2, "once for main and text_order, once for the shuffled image"


@pytest.mark.parametrize("place", get_args(InsertAt))
@pytest.mark.parametrize("template", ["plain", "vicuna_v1"])
def test_a_prompt_begins_the_layout_of_training(place, template):
    made = views(strategies(place))
    for sample in (replace(sample, template=template) for sample in SAMPLES):
        whole = made.lay_out(View(sample=sample))
        for turns in range(1, len(sample.turns), 2):
            asked = made.prompt(View(sample=replace(sample, turns=sample.turns[:turns])))
            assert keys(whole)[: len(keys(asked))] == keys(asked)
            if place != "end":
                assert keys(asked)[-1][0] != "register" or place in (
                    "before_response",
                    "after_image",
                    "start",
                )


def keys(layout) -> list[tuple]:
    """Returns what is in each row."""
    return [
        (span.token_name or span.image, i) if span.kind != "text" else (id_,)
        for span in layout
        for i, id_ in enumerate(span.ids or range(span.n))
    ]
