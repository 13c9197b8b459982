"""Values by view, by sample and beside others, against loops over the views of the samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmmkit.api import Ctx, HiddenMean, LogProb, Select
from tests.support import preference
from tests.support.plain_twins import off
from tests.support.preference import TASK
from tests.support.tiny_model import pack

CHOSEN, REJECTED, FAINT = (TASK.read(role) for role in TASK.roles)
MAIN, STATE = LogProb(Select()), HiddenMean(Select(view="prefer", view_role="faint", kind="image"))
NEEDS = (CHOSEN, REJECTED, FAINT, MAIN, STATE)


@pytest.fixture(scope="module")
def given() -> tuple[Ctx, dict]:
    """Returns a context with drawn values, and the values of each need as {(sample, role): [values]}."""
    made = replace(preference.packer(), needs=NEEDS, terms=())
    twice = (*preference.SAMPLES, preference.SAMPLES[3])  # one sample twice, under one key
    samples = preference.sized(twice, made)
    batch, _ = pack(made, samples)
    draw = torch.Generator().manual_seed(0)
    taps, loops = {}, {}
    for need in NEEDS:
        n = batch.value_count(need)
        shape = (n, 3) if need == STATE else (n,)
        taps[need] = torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()
        left, loops[need] = list(taps[need]), {}
        for s, sample in enumerate(samples):
            for v, member in enumerate(sample.members):
                select = need.over if need == STATE else replace(need.at, supervised=True)
                if select.takes(member.view):
                    count = (
                        min(1, len(select.positions(member.layout)))
                        if need == STATE
                        else len(select.positions(member.layout))
                    )
                    if count:
                        loops[need][s, v] = [left.pop(0) for _ in range(count)]
        assert not left
    return Ctx("prefer", batch, taps, None), loops


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("need", NEEDS, ids=str)
def test_by_view(given, need, reduce):
    ctx, loops = given
    x, view_N = ctx.by_view(need, reduce=reduce)
    want = [getattr(torch.stack(values), reduce)(0) for values in loops[need].values()]
    assert off(x, torch.stack(want)) < 1e-12
    starts = [0]
    for sample in range(len(set(ctx.batch.sample_V))):
        starts.append(starts[-1] + ctx.batch.sample_V.count(sample))
    assert view_N.tolist() == [starts[s] + v for s, v in loops[need]]


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize(
    "needs", [(CHOSEN, REJECTED), (CHOSEN, FAINT, MAIN), (STATE, CHOSEN), (MAIN,)], ids=str
)
def test_by_sample(given, needs, reduce):
    ctx, loops = given
    found = ctx.by_sample(*needs, reduce=reduce)
    samples = sorted(set.intersection(*({s for s, _ in loops[need]} for need in needs)))
    assert ctx.batch.samples_with(*needs) == len(samples) > 0
    for need, x in zip(needs, found, strict=True):
        rows = [
            [each for (s, _), values in loops[need].items() if s == sample for each in values]
            for sample in samples
        ]
        assert off(x, torch.stack([getattr(torch.stack(row), reduce)(0) for row in rows])) < 1e-12


def test_a_sample_without_one_of_the_views_is_in_no_sum(given):
    ctx, loops = given
    blind = [s for s in range(len(set(ctx.batch.sample_V))) if s not in {s for s, _ in loops[FAINT]}]
    assert blind and ctx.batch.samples_with(CHOSEN) == ctx.batch.samples_with(CHOSEN, FAINT) + len(blind)
    chosen, _ = ctx.by_sample(CHOSEN, FAINT)
    (gradient,) = torch.autograd.grad(chosen.sum(), ctx.taps[CHOSEN])
    assert sum(len(values) for (s, _), values in loops[CHOSEN].items() if s in blind) == int(
        (gradient == 0).sum()
    )


@pytest.mark.parametrize(
    ("need", "like"), [(FAINT, MAIN), (MAIN, FAINT), (CHOSEN, REJECTED), (REJECTED, CHOSEN)]
)
def test_beside(given, need, like):
    ctx, loops = given
    found = ctx.beside(need, like=like, fill=-7.0)
    want = []
    for (s, _), values in loops[like].items():
        others = next((other for (t, _), other in loops[need].items() if t == s), [])
        want += [others[i] if i < len(others) else torch.tensor(-7.0) for i in range(len(values))]
    assert off(found, torch.stack(want).double()) < 1e-12
    assert (found == -7.0).any() or (need, like) != (FAINT, MAIN)
    (gradient,) = torch.autograd.grad(found.sum(), ctx.taps[need])
    assert set(gradient.tolist()) <= {0.0, 1.0} and gradient.any()


def test_targets_are_the_tokens_of_the_answers(given):
    ctx, loops = given
    ids = ctx.targets(CHOSEN).tolist()
    want = []
    for sample in (*preference.SAMPLES, preference.SAMPLES[3]):
        letters = preference.paper_objective.Letters()
        answer = sample.turns[-1].text
        want += (
            letters.encode(answer + "\n")
            if sample.template == "plain"
            else [*letters.encode(" " + answer), letters.eos]
        )
    assert ids == want
    with pytest.raises(KeyError, match="has none"):
        ctx.targets(STATE)
    with pytest.raises(KeyError, match="does not declare"):
        ctx.by_view(LogProb(Select(role="system")))


def test_another_reduction_is_refused(given):
    with pytest.raises(ValueError, match="`sum` or `mean`, not `max`"):
        given[0].by_view(MAIN, reduce="max")


def test_without_items_there_are_no_values():
    made = replace(preference.packer(), needs=NEEDS, terms=())
    batch, _ = pack(made, [])
    ctx = Ctx("prefer", batch, {need: torch.zeros(0, requires_grad=True) for need in NEEDS}, None)
    assert ctx.by_sample(CHOSEN, REJECTED)[0].shape == (0,) and batch.samples_with(CHOSEN, REJECTED) == 0
    assert ctx.by_view(MAIN)[0].shape == ctx.beside(FAINT, like=MAIN).shape == (0,)
