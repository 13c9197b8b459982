"""Losses of whole rows of logits, packed and in chunks, against every view alone with all logits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmmkit import build
from lmmkit.api import RowLoss, Sample, Select
from lmmkit.model import cross_entropy
from lmmkit.objective import Objective
from lmmkit.recipe import Speed
from tests.support import dense_views, paper_objective, preference
from tests.support.all_gradients import all_gradients, assert_alike
from tests.support.fake_cuda import gradients, on_card
from tests.support.low_rank import assert_factors, merged_into
from tests.support.plain_twins import TWIN_CASES, off
from tests.support.preference import SAMPLES, TASK
from tests.support.tiny_model import pack
from tests.test_objective_needs import with_adapters


@dataclass(frozen=True, kw_only=True)
class Smooth(RowLoss):
    """Label smoothing with the square of the log-sum-exp."""

    def rows(self, logits_CV, target_C):
        plain = F.cross_entropy(logits_CV, target_C, reduction="none", label_smoothing=0.2)
        return plain + 0.01 * logits_CV.logsumexp(-1).square()


@dataclass(frozen=True, kw_only=True)
class OfRejected(Smooth):
    at = Select(view="prefer", view_role="rejected", turn=-1)


@dataclass(frozen=True, kw_only=True)
class Weighted(RowLoss):
    """A cross entropy with a factor for each row, a factor for each sample, and another token for each row."""

    def labels(self, sample, dims):
        factors, tokens, of_sample = given(sample)
        return {"factor": factors, "token": tokens, "sample": of_sample}

    def rows(self, logits_CV, target_C, factor, token, sample):
        logp_CV = logits_CV.log_softmax(-1)
        mixed = logp_CV.gather(1, target_C[:, None]) + 0.5 * logp_CV.gather(1, token)
        return -mixed[:, 0] * factor * sample  # in float64, if the logits are


def given(sample: Sample) -> tuple[Tensor, Tensor, float]:
    """Returns a factor and a token for each target of a sample's main view, and a factor for the sample."""
    texts = [turn.text for turn in sample.turns if turn.role == "assistant"]
    around = 1 if sample.template == "plain" else 2  # the end of an answer, and the blank before it
    n = sum(len(text) + around for text in texts)
    draw = torch.Generator().manual_seed(n)
    return torch.rand(n, generator=draw), torch.randint(90, (n, 1), generator=draw), float(ord(sample.key))


TERMS = (Smooth(name="smooth"), OfRejected(name="rejected"), Weighted(name="weighted"))
FACTORS = {"next_token": 0.1, "smooth": 1.0, "rejected": 0.7, "weighted": 0.01}


def made_and_batch(dtype=torch.float64, *, share=True):
    made = paper_objective.objective(dtype=dtype)
    packer = replace(
        preference.packer(share=share), terms=TERMS, needs=tuple(term.needs[0] for term in TERMS)
    )
    labelled = {"losses": TERMS[2:], "dims": paper_objective.DIMS}
    samples = preference.sized(SAMPLES, packer, TASK, **labelled)
    made.terms = TERMS
    return made, samples, pack(packer, samples)[0]


def dense_total(made: Objective, samples) -> Tensor:
    """Returns the weighted total, from all logits of every view alone."""
    views = [dense_views.dense(made, member) for sample in samples for member in sample.members]
    plain = dense_views.log_prob(views, preference.LogProb(Select()))
    total = -FACTORS["next_token"] * plain.sum()
    for term in TERMS[:2]:
        chosen = [each for each in views if term.at.takes(each.member.view)]
        for each, targets in zip(chosen, dense_views.targets(views, term.needs[0]), strict=True):
            logits_TV = each.hidden_TD @ each.head_VD.T
            for place, target in targets:
                p = logits_TV[place - 1].log_softmax(-1)
                lse = logits_TV[place - 1].exp().sum().log()
                total = total + FACTORS[term.name] * (0.01 * lse**2 - 0.8 * p[target] - 0.2 * p.mean())
    main = [each for each in views if each.member.view.name == "main"]
    for each, targets in zip(main, dense_views.targets(views, TERMS[2].needs[0]), strict=True):
        factors, tokens, of_sample = given(each.member.view.sample)
        for (place, target), factor, (token,) in zip(targets, factors, tokens.tolist(), strict=True):
            p = (each.hidden_TD[place - 1] @ each.head_VD.T).log_softmax(-1)
            total = total - FACTORS["weighted"] * float(factor) * of_sample * (p[target] + 0.5 * p[token])
    return total


def packed_total(made: Objective, batch) -> Tensor:
    sums = made(batch).sums
    return sum(factor * sums[name] for name, factor in FACTORS.items())


def assert_twin(made, samples, batch, limit: float) -> None:
    assert_alike(made, packed_total(made, batch), dense_total(made, samples), limit)


@pytest.mark.parametrize("recompute", ["none", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "limit", "share"), TWIN_CASES)
def test_packed_rows_have_the_losses_of_every_view_alone(recompute, share, dtype, limit):
    made, samples, batch = made_and_batch(dtype, share=share)
    assert batch.head is None and all(batch.count[term.name] for term in TERMS)
    build.set_layers(made, Speed(recompute=recompute))
    assert_twin(made, samples, batch, limit)


def test_in_several_chunks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGIT_BYTES", 1)
    monkeypatch.setattr(cross_entropy, "LEAST_ROWS", 11)
    made, samples, batch = made_and_batch()
    sizes, rows = [], Smooth.rows
    monkeypatch.setattr(Smooth, "rows", lambda self, z, t: sizes.append(len(z)) or rows(self, z, t))
    assert_twin(made, samples, batch, 1e-12)
    assert max(sizes) == 11 and len(sizes) > 8


def test_under_low_rank_updates():
    made, samples, batch = made_and_batch()
    plain = merged_into(made_and_batch()[0], with_adapters(made))
    got, want = packed_total(made, batch), dense_total(plain, samples)
    assert off(got, want) < 1e-12
    assert_factors(made, all_gradients(made, got), all_gradients(plain, want), 1e-12)


def test_several_micro_batches_are_one():
    made, samples, batch = made_and_batch()
    packer = replace(preference.packer(), terms=TERMS, needs=tuple(term.needs[0] for term in TERMS))
    parts = [pack(packer, samples[a:b])[0] for a, b in ((0, 1), (1, 4), (4, 6), (6, 6))]
    assert sum(part.count["smooth"] for part in parts) == batch.count["smooth"]
    whole = all_gradients(made, packed_total(made, batch))
    sums = [all_gradients(made, packed_total(made, part)) for part in parts]
    for name, gradient in whole.items():
        assert off(sum(each[name] for each in sums), gradient) < 1e-12, name


def test_on_a_card_nothing_waits_for_the_device():
    made, _, batch = made_and_batch(torch.float32)
    made.compute = torch.bfloat16
    with on_card(made) as rules:
        loss = packed_total(made, batch.to("cuda"))
        found = gradients(loss, list(made.parameters()), torch.ones_like(loss))
    assert rules.waited == [] and any(g is not None for g in found)
