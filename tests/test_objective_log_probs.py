"""Log-probabilities of packed views against every view alone with all logits: values, and all gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lmmkit import build
from lmmkit.data.micro_batch.laid_out import SizedSample
from lmmkit.data.micro_batch.need_rows import head_pairs
from lmmkit.errors import UserError
from lmmkit.model import cross_entropy
from lmmkit.model.reference import Reference
from lmmkit.objective import Objective
from lmmkit.recipe import Speed
from tests.support import dense_views, paper_objective, preference
from tests.support.all_gradients import all_gradients, gradient_errors
from tests.support.fake_cuda import gradients, on_card
from tests.support.low_rank import assert_factors, merged_into
from tests.support.plain_twins import TWIN_CASES, off, show
from tests.support.preference import SAMPLES, TASK
from tests.support.tiny_model import pack
from tests.test_objective_needs import with_adapters

NEXT_TOKEN = 0.1  # its weight beside the task


def made_and_batch(dtype=torch.float64, *, share=True):
    made, packer = paper_objective.objective(dtype=dtype), preference.packer(share=share)
    samples = preference.sized(SAMPLES, packer)
    made.terms = (TASK,)
    return made, samples, pack(packer, samples)[0]


def dense_sums(made: Objective, samples: list[SizedSample]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Returns (next-token sum, value of the task, log-probabilities of each need), every view alone."""
    next_token, chosen_and, needs = [], {role: [] for role in TASK.roles}, {need: [] for need in TASK.needs}
    for sample in samples:
        views = [dense_views.dense(made, member) for member in sample.members]
        next_token.append(dense_views.log_prob(views[:1], preference.LogProb(preference.Select())).sum())
        for need in TASK.needs[:-1]:
            if len(views) == 4 or need.at.view_role != "faint":
                needs[need].append(dense_views.log_prob(views, need))
                chosen_and[need.at.view_role].append(needs[need][-1].sum())
        needs[TASK.needs[-1]].append(dense_views.log_sum_exp(views, TASK.needs[-1]))
    with_image = [
        chosen for chosen, s in zip(chosen_and["chosen"], samples, strict=True) if len(s.members) == 4
    ]
    stacked = {role: torch.stack(sums) for role, sums in chosen_and.items()}
    pairs = [(stacked["chosen"], stacked["rejected"]), (torch.stack(with_image), stacked["faint"])]
    found = [torch.cat(needs[need]) for need in TASK.needs]
    value = preference.value(pairs) + found[-1].square().sum()
    return -torch.stack(next_token).sum(), value, found


def assert_twin(made: Objective, samples, batch, limit: float) -> None:
    outcome = made(batch)
    next_token, value, found = dense_sums(made, samples)
    ctx = outcome.ctxs["prefer"]
    errors = {str(need): off(ctx[need], want) for need, want in zip(TASK.needs, found, strict=True)}
    errors |= {
        "next": off(outcome.sums["next_token"], next_token),
        "prefer": off(outcome.sums["prefer"], value),
    }
    got = all_gradients(made, NEXT_TOKEN * outcome.sums["next_token"] + outcome.sums["prefer"])
    want = all_gradients(made, NEXT_TOKEN * next_token + value)
    errors |= gradient_errors(got, want)
    show("off", max(errors.values()))
    assert max(errors.values()) < limit, {name: e for name, e in errors.items() if e >= limit}
    assert sum(bool(g.any()) for g in want.values()) > 20


@pytest.mark.parametrize("recompute", ["none", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "limit", "share"), TWIN_CASES)
def test_packed_views_score_as_every_view_alone(recompute, share, dtype, limit):
    made, samples, batch = made_and_batch(dtype, share=share)
    build.set_layers(made, Speed(recompute=recompute))
    assert_twin(made, samples, batch, limit)


def test_in_several_chunks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGIT_BYTES", 1)
    monkeypatch.setattr(cross_entropy, "LEAST_ROWS", 11)
    assert_twin(*made_and_batch(), 1e-12)


def test_under_low_rank_updates():
    made, samples, batch = made_and_batch()
    plain = merged_into(made_and_batch()[0], with_adapters(made))
    outcome, (next_token, value, found) = made(batch), dense_sums(plain, samples)
    for need, want in zip(TASK.needs, found, strict=True):
        assert off(outcome.ctxs["prefer"][need], want) < 1e-12
    got = all_gradients(made, NEXT_TOKEN * outcome.sums["next_token"] + outcome.sums["prefer"])
    assert_factors(made, got, all_gradients(plain, NEXT_TOKEN * next_token + value), 1e-12)


def test_each_row_meets_the_head_once():
    made, _, batch = made_and_batch()
    head, rows = batch.head, []
    assert head is not None and torch.equal(head.row_R, head.row_R.unique())
    asked = len(batch.predict) + sum(len(batch.gathers[need]) for need in TASK.needs)
    pairs = {(int(head.row_R[p]), int(t)) for p, t in zip(head.place_P, head.target_P, strict=True)}
    assert len(pairs) == len(head.place_P) < asked and len(head.row_R) < len(pairs)
    linear = cross_entropy._logits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "_logits", lambda h, w: rows.append(len(h)) or linear(h, w))
        made(batch)
    assert rows == [len(head.row_R)]
    apart = head_pairs(batch.predict, batch.target_S, {})
    assert apart is None, "without such a need the cross entropy is the plain one"


def test_views_that_are_read_are_in_no_next_token_sum_and_no_count():
    made, samples, batch = made_and_batch()
    plain_packer = replace(preference.packer(), needs=(), terms=())
    plain, _ = pack(plain_packer, [plain_packer.sized(sample.members[:1]) for sample in samples])
    assert plain.head is None and batch.count["next_token"] == plain.count["next_token"]
    with_image = sum(len(s.members) == 4 for s in samples)
    assert batch.count["prefer"] == len(SAMPLES) > with_image > 0
    made.terms = ()
    assert off(made(plain).sums["next_token"], made(batch).sums["next_token"]) < 1e-12


def test_several_micro_batches_are_one():
    made, samples, batch = made_and_batch()
    packer = preference.packer()
    parts = [pack(packer, samples[a:b])[0] for a, b in ((0, 1), (1, 4), (4, 6))]
    assert sum(part.count["prefer"] for part in parts) == batch.count["prefer"]
    whole = all_gradients(made, made(batch).sums["prefer"])
    sums = [all_gradients(made, made(part).sums["prefer"]) for part in parts]
    for name, gradient in whole.items():
        assert off(sum(each[name] for each in sums), gradient) < 1e-12, name


def test_an_empty_micro_batch_has_no_items_and_gradients_of_zero():
    made, _, _ = made_and_batch()
    batch, _ = pack(preference.packer(), [])
    sums = made(batch).sums
    assert batch.count["prefer"] == 0 == sums["prefer"] and sums["next_token"] == 0
    (sums["next_token"] + sums["prefer"]).backward()


def test_a_view_that_is_not_to_be_read_is_refused():
    packer = preference.packer()
    (sample, *_) = preference.sized(SAMPLES[:1], packer)
    members = [m._replace(view=replace(m.view, supervision="none")) for m in sample.members[1:]]
    with pytest.raises(UserError, match=r"plugins\.prefer") as error:
        pack(packer, [packer.sized(members)])
    assert error.value.problems[0].code == "plugin/view"


def test_on_a_card_no_log_probability_waits_for_the_device():
    made, _, batch = made_and_batch(torch.float32)
    term = replace(TASK, model="reference")
    packer = preference.packer(term)
    batch, _ = pack(packer, preference.sized(SAMPLES, packer, term))
    made.terms, made.references = (term,), (Reference(torch.nn.ModuleDict(), made.lmm, {}),)
    made.compute = torch.bfloat16
    with on_card(made) as rules:
        outcome = made(batch.to("cuda"))
        ctx = outcome.ctxs["prefer"]
        x, _ = ctx.by_view(TASK.needs[0])
        loss = outcome.sums["prefer"] + x.sum() + ctx.beside(TASK.needs[0], like=TASK.needs[1]).sum()
        assert all(ctx[need].dtype == torch.float32 for need in term.needs)
        found = gradients(loss, list(made.parameters()), torch.ones_like(loss))
    assert rules.waited == [] and any(g is not None for g in found)
