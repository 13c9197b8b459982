"""Losses of whole rows beside a teacher's, packed and in chunks, against every view alone with all logits of both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from lmmkit import build
from lmmkit.api import AttnTo, Loss, RowLoss, Select
from lmmkit.model import cross_entropy
from lmmkit.model.teacher_model import TeacherModel
from lmmkit.model.transforms import lora
from lmmkit.objective import Objective
from lmmkit.recipe import Speed
from tests.support import dense_views, paper_objective, preference
from tests.support.all_gradients import all_gradients, assert_alike
from tests.support.fake_cuda import gradients, on_card
from tests.support.hf_weights import scramble
from tests.support.plain_twins import TWIN_CASES, off
from tests.support.preference import SAMPLES, TASK
from tests.support.tiny_model import TEXT, pack, pixels, tiny_lmm

WIDE = replace(TEXT, width=40, depth=3, heads=2, kv_heads=1, head_size=16)


@dataclass(frozen=True, kw_only=True)
class Towards(RowLoss):
    """KL(teacher || model) at temperature 2."""

    teacher: str

    def rows(self, logits_CV, target_C, teacher_CV):
        own, goal = (logits_CV / 2).log_softmax(-1), (teacher_CV / 2).log_softmax(-1)
        return 4 * (goal.exp() * (goal - own)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Away(RowLoss):
    """KL(model || teacher) of the rejected answers, and a part of the cross entropy."""

    teacher: str
    at = Select(view="prefer", view_role="rejected", turn=-1)

    def rows(self, logits_CV, target_C, teacher_CV):
        own, goal = logits_CV.log_softmax(-1), teacher_CV.log_softmax(-1)
        return (own.exp() * (own - goal)).sum(-1) - 0.1 * own.gather(1, target_C[:, None])[:, 0]


TERMS = (Towards(name="towards", teacher="big"), Away(name="away", teacher="other"))
FACTORS = {"next_token": 0.1, "towards": 1.0, "away": 0.7}


def brighter(image, fit="pad") -> Tensor:
    """Returns the image as the teachers read it, with another mean and deviation."""
    return pixels(image, fit) * 0.7 + 0.4


def teachers(dtype: torch.dtype) -> dict[str, Objective]:
    """Returns two other models, made by hand: a wider and deeper one, and one of the student's sizes."""
    found = {}
    for seed, (name, text) in enumerate({"big": WIDE, "other": TEXT}.items()):
        lmm = tiny_lmm(dtype=dtype, text=text)
        scramble(lmm, 20 + seed)
        found[name] = Objective(lmm.to(dtype), nn.ModuleDict(), compute=torch.float32)
    return found


def made_and_batch(dtype=torch.float64, *, share=True):
    made = paper_objective.objective(dtype=dtype)
    needs = tuple(term.needs[0] for term in TERMS)
    packer = replace(preference.packer(share=share), terms=TERMS, needs=needs)
    samples = preference.sized(SAMPLES, packer, TASK)
    made.terms = TERMS
    made.teacher_models = {
        name: TeacherModel(each.lmm, torch.float32) for name, each in teachers(dtype).items()
    }
    return made, samples, with_pixels(pack(packer, samples)[0])


def with_pixels(batch):
    return replace(batch, teacher_pixels=dict.fromkeys(("big", "other"), batch.pixels_ICXY * 0.7 + 0.4))


def dense_total(made: Objective, samples) -> Tensor:
    """Returns the weighted total, from all logits of both models, every view alone."""
    members = [member for sample in samples for member in sample.members]
    views = [dense_views.dense(made, member) for member in members]
    plain = dense_views.log_prob(views, preference.LogProb(Select()))
    total = -FACTORS["next_token"] * plain.sum()
    others = teachers(made.lmm.decoder.norm.weight.dtype)
    for term in TERMS:
        with mock.patch.object(dense_views, "pixels", brighter), torch.no_grad():
            goals = [dense_views.dense(others[term.teacher], member) for member in members]
        pairs = [(v, g) for v, g in zip(views, goals, strict=True) if term.at.takes(v.member.view)]
        every = dense_views.targets(views, term.needs[0])
        for (own, goal), targets in zip(pairs, every, strict=True):
            z, t = (each.hidden_TD @ each.head_VD.T for each in (own, goal))
            for place, target in targets:
                total = total + FACTORS[term.name] * plain_loss(term, z[place - 1], t[place - 1], target)
    return total


def plain_loss(term: RowLoss, z_V: Tensor, t_V: Tensor, target: int) -> Tensor:
    """Sums over the vocabulary in plain words."""
    if isinstance(term, Towards):
        p, q = (z_V / 2).exp() / (z_V / 2).exp().sum(), (t_V / 2).exp() / (t_V / 2).exp().sum()
        return 4 * (q * (q / p).log()).sum()
    p, q = z_V.exp() / z_V.exp().sum(), t_V.exp() / t_V.exp().sum()
    return (p * (p / q).log()).sum() - 0.1 * p[target].log()


def packed_total(made: Objective, batch) -> Tensor:
    sums = made(batch).sums
    return sum(factor * sums[name] for name, factor in FACTORS.items())


def assert_twin(made, samples, batch, limit: float, least: int = 20) -> None:
    assert_alike(made, packed_total(made, batch), dense_total(made, samples), limit, least=least)


@pytest.mark.parametrize("recompute", ["none", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "limit", "share"), TWIN_CASES)
def test_packed_rows_have_the_losses_of_every_view_alone(recompute, share, dtype, limit):
    made, samples, batch = made_and_batch(dtype, share=share)
    build.set_layers(made, Speed(recompute=recompute))
    assert_twin(made, samples, batch, limit)


def test_in_chunks_the_logits_of_both_models_are_never_all_in_memory(monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGIT_BYTES", 1)
    monkeypatch.setattr(cross_entropy, "LEAST_ROWS", 11)
    sizes, logits = [], cross_entropy._logits
    monkeypatch.setattr(cross_entropy, "_logits", lambda h, w: sizes.append(len(h)) or logits(h, w))
    made, samples, batch = made_and_batch()
    assert_twin(made, samples, batch, 1e-12)
    rows = sum(len(batch.gathers[term.needs[0]]) for term in TERMS)
    assert max(sizes) == 11 and sum(sizes) >= 4 * rows, "both models, forward and backward"


def test_under_low_rank_updates_their_own_factors_have_the_gradients_of_the_twin():
    made, samples, batch = made_and_batch()
    adapters = lora.attach(made.lmm.decoder, r=3, alpha=6.0, dropout=0.0, targets=lora.TARGETS, seed=0)
    made.double()
    with torch.no_grad():
        for i, p in enumerate(adapters):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.2)
    made.requires_grad_(False)
    for p in adapters:
        p.requires_grad_(True)
    assert_twin(made, samples, batch, 1e-12, least=len(adapters))


def test_several_micro_batches_are_one():
    made, samples, batch = made_and_batch()
    packer = replace(preference.packer(), terms=TERMS, needs=tuple(term.needs[0] for term in TERMS))
    parts = [with_pixels(pack(packer, samples[a:b])[0]) for a, b in ((0, 1), (1, 4), (4, 6), (6, 6))]
    assert sum(part.count["towards"] for part in parts) == batch.count["towards"]
    whole = all_gradients(made, packed_total(made, batch))
    sums = [all_gradients(made, packed_total(made, part)) for part in parts]
    for name, gradient in whole.items():
        assert off(sum(each[name] for each in sums), gradient) < 1e-12, name


def test_a_teacher_is_no_part_of_the_model_and_does_not_change():
    made, _, batch = made_and_batch(torch.float32)
    teacher = made.teacher_models["big"]
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    named = {*dict(made.named_parameters()), *made.state_dict(), *dict(made.named_modules())}
    assert not any("teacher" in name for name in named)
    made.train()
    packed_total(made, batch).backward()
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


@dataclass(frozen=True, kw_only=True)
class Look(Loss):
    """Reads the attention of a head that the teacher does not have, in a layer that only the student has."""

    needs = (AttnTo(q=Select(supervised=True), heads=(3,), layers=(1,)),)

    def value(self, ctx):
        return ctx[self.needs[0]].square().sum()


def test_attention_that_terms_read_of_the_model_is_not_read_of_its_teacher():
    made, samples, batch = made_and_batch()
    want = made(batch).sums
    shallow = tiny_lmm(dtype=torch.float64, text=replace(WIDE, depth=1))
    made.teacher_models["other"] = TeacherModel(shallow, torch.float32)
    alone = made(batch).sums["away"]
    look = Look(name="look")
    needs = (*(term.needs[0] for term in TERMS), *look.needs)
    packer = replace(preference.packer(), terms=(*TERMS, look), needs=needs)
    made.terms = (*TERMS, look)
    found = made(with_pixels(pack(packer, samples)[0])).sums
    assert found["look"] > 0
    assert off(found["towards"], want["towards"]) < 1e-12 and off(found["away"], alone) < 1e-12


def test_on_a_card_nothing_waits_for_the_device():
    made, _, batch = made_and_batch(torch.float32)
    made.compute = torch.bfloat16
    for teacher in made.teacher_models.values():
        teacher.compute = torch.bfloat16
    with on_card(made, *made.teacher_models.values()) as rules:
        loss = packed_total(made, batch.to("cuda"))
        found = gradients(loss, list(made.parameters()), torch.ones_like(loss))
    assert rules.waited == [] and any(g is not None for g in found)
