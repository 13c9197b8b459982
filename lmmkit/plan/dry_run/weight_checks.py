"""Checks of what weights the rows of the next-token loss: pure, sound, and the same however a step is cut."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lmmkit import plugin_calls
from lmmkit.api.components import TokenWeight
from lmmkit.api.ctx import Ctx
from lmmkit.errors import Problem
from lmmkit.errors.dry_run import IN_PLACE, NO_GRADIENT, NOT_ADDITIVE, NOT_PURE, WEIGHTS
from lmmkit.plan.dry_run.subject import Check, global_seed, problem
from lmmkit.plan.dry_run.term_checks import CLOSE
from lmmkit.plan.dry_run.term_subject import Group, TermSubject


def _weights(subject: TermSubject, group: Group) -> tuple[Tensor, Ctx]:
    """Returns the weights of a micro-batch, and the `Ctx` from which they were made."""
    assert isinstance(subject.term, TokenWeight)
    ctx = subject.ctx(Group(group.batch, {need: tap.clone() for need, tap in group.taps.items()}))
    none = torch.zeros(0)
    return plugin_calls.weigh(subject.term, ctx) if group.batch.count["next_token"] else none, ctx


def pure_weights(subject: TermSubject) -> Iterator[Problem]:
    """Calls `weigh` twice: it must give equal weights, and leave the needs as they are."""
    name, group, found = subject.term.name, subject.groups[2], []
    for seed in range(2):
        with global_seed(seed):
            weight_N, ctx = _weights(subject, group)
        found.append(weight_N)
        if any(not torch.equal(ctx.taps[need], tap) for need, tap in group.taps.items()):
            got = "the tensor of a need is changed"
            yield problem(IN_PLACE, name, "weigh", subject.term, got, expected="a new tensor")
            return
    if not torch.equal(*(each.nan_to_num() for each in found)):
        got, expected = "two weights of a row for the same inputs", "weights that depend on nothing but `ctx`"
        yield problem(NOT_PURE, name, "weigh", subject.term, got, expected=expected)


def sound_weights(subject: TermSubject) -> Iterator[Problem]:
    """Finds weights that are negative or not finite."""
    weight_N, _ = _weights(subject, subject.groups[2])
    wrong = weight_N[~((weight_N >= 0) & weight_N.isfinite())]
    if len(wrong):
        got = f"{float(wrong[0]):.6g}, and {len(wrong)} such weights of {len(weight_N)}"
        yield problem(WEIGHTS, subject.term.name, "weigh", subject.term, got)


def apart_and_together(subject: TermSubject) -> Iterator[Problem]:
    """Weights two micro-batches, and both together: no row may depend on other samples."""
    (first, ctx), (rest, _), (both, _) = (_weights(subject, group) for group in subject.groups)
    apart = torch.cat([first, rest])
    if "rng" in vars(ctx) or torch.allclose(apart, both, rtol=CLOSE, atol=CLOSE * float(both.abs().mean())):
        return
    n = int((apart - both).abs().argmax())
    got = f"{float(apart[n]):.6g} for a row, and {float(both[n]):.6g} with other samples beside it"
    yield problem(NOT_ADDITIVE, subject.term.name, "weigh", subject.term, got)


def untrained_module(subject: TermSubject) -> Iterator[Problem]:
    """Finds parameters that would never be trained: no gradient flows through a weight."""
    named = subject.module.named_parameters() if subject.module is not None else ()
    if trainable := [f"`{name}`" for name, p in named if p.requires_grad]:
        got = f"{', '.join(trainable[:4])} of a `TokenWeight`, through whose weights no gradient flows"
        yield problem(NO_GRADIENT, subject.term.name, "modules", subject.term, got)


def checks_of_weights(weigher: TokenWeight) -> tuple[Check[TermSubject], ...]:
    """Returns the checks of what weights rows; what weights characters alone has no `weigh`."""
    of_weigh = (pure_weights, sound_weights, apart_and_together) if plugin_calls.has_weigh(weigher) else ()
    return (untrained_module, *of_weigh)
