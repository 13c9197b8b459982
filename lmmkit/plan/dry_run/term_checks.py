"""Checks of a term on real micro-batches and drawn needs: sums over items, on the graph, without side effects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from lmmkit import plugin_calls
from lmmkit.api.batch import Batch, Ragged
from lmmkit.api.components import Reader, RowLoss, StepTerm, Term, TokenWeight
from lmmkit.api.ctx import Ctx
from lmmkit.errors import Code, Problem
from lmmkit.errors.dry_run import (
    DETACHED,
    IN_PLACE,
    NO_GRADIENT,
    NO_ITEMS,
    NOT_ADDITIVE,
    NOT_FINITE,
    NOT_PURE,
)
from lmmkit.plan.dry_run.subject import Check, global_seed, problem
from lmmkit.plan.dry_run.term_subject import Group, TermSubject, summed_value, whole_value
from lmmkit.plugin_calls.devices import watched
from lmmkit.plugin_calls.guard import calling, returned, shown
from lmmkit.progress import plural

CALLS = 2  # of `value` with the same inputs, and one more
CLOSE = 1e-3  # relative; sums of float32 in another order differ by less
ROUGH = 0.3  # the same for terms that draw from `ctx.rng`: other draws in another micro-batch


def called(term: Reader) -> str:
    """Returns the method from which the value of a term comes."""
    return "rows" if isinstance(term, RowLoss) else "embed" if isinstance(term, StepTerm) else "value"


def _of_value(code: Code, subject: TermSubject, got: str, **fields: object) -> Problem:
    """Returns a problem of the method from which the value of a term comes."""
    return problem(code, subject.term.name, called(subject.term), subject.term, got, **fields)


def additive_counts(subject: TermSubject) -> Iterator[Problem]:
    """Adds up the counts of micro-batches: they are divided by as one number, however a step is cut."""
    name = subject.term.name
    first, rest, both = (batch.count[name] for batch, _ in subject.groups)
    apart = sum(batch.count[name] for batch, _ in subject.apart)
    if first + rest != both:
        got = f"{first} and {rest} items in two micro-batches, {both} in both together"
        yield problem(NOT_ADDITIVE, name, "count", subject.term, got)
    elif apart != first:
        got = f"{apart} items in {len(subject.apart)} micro-batches of one sample, {first} in all together"
        yield problem(NOT_ADDITIVE, name, "count", subject.term, got)
    elif none := subject.pack([]).count[name]:
        yield problem(
            NOT_ADDITIVE, name, "count", subject.term, f"{none} items in a micro-batch without samples"
        )
    else:
        yield from some_items(subject)


def pure_value(subject: TermSubject) -> Iterator[Problem]:
    """Calls `value` several times: it must give one number, and leave the needs and the batch as they are."""
    batch, taps = subject.groups[2]
    kept, found = _tensors(batch), []
    before = {name: tensor.clone() for name, tensor in kept.items()}
    for call in range(CALLS):
        leaves = [tap.clone().requires_grad_() for tap in taps.values()]
        # clones: torch refuses to change a leaf in place, but the model gives no leaves
        handed = {need: leaf.clone() for need, leaf in zip(taps, leaves, strict=True)}
        with global_seed(call):
            value = summed_value(subject.as_term, subject.ctx(Group(batch, handed)))
        found.append(float(value.detach()))
        if any(not torch.equal(handed[need].detach(), tap) for need, tap in taps.items()):
            got = "the tensor of a need is changed"
            yield _of_value(IN_PLACE, subject, got, expected="a new tensor")
            return
    if changed := [name for name, tensor in kept.items() if not _equal(tensor, before[name])]:
        got = f"`batch.{changed[0]}` is changed"
        yield _of_value(IN_PLACE, subject, got, expected="a new tensor")
        return
    found.append(float(subject.values[2][0]))
    if len(set(found)) > 1 and all(map(math.isfinite, found)):
        got = f"{', then '.join(f'{value:.6g}' for value in found)} for the same inputs"
        expected = "a value that depends on nothing but `ctx`"
        yield _of_value(NOT_PURE, subject, got, expected=expected)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Returns whether tensors are equal; NaN, as a label may be, equals NaN."""
    return torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, 0, 0, equal_nan=True))


def _tensors(batch: Batch) -> dict[str, Tensor]:
    """Returns the tensors of a batch that a term may read, by name."""
    found = {field.name: getattr(batch, field.name) for field in fields(batch)}
    found |= {f"labels['{key}']": label for key, label in batch.labels.items()}
    found |= {name: value.flat for name, value in found.items() if isinstance(value, Ragged)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def finite_value(subject: TermSubject) -> Iterator[Problem]:
    """Finds values that are NaN, infinite or of another type than float32."""
    for value, _ in subject.values:
        if value.dtype != torch.float32:
            raise returned(
                subject.term.name, called(subject.term), subject.term, shown(value), "a float32 scalar"
            )
        if not value.isfinite():
            yield _of_value(NOT_FINITE, subject, f"{float(value)}")
            return


def additive_value(subject: TermSubject) -> Iterator[Problem]:
    """Adds up the values of micro-batches: a SUM over items is the same, however a step is cut."""
    close = ROUGH if any(drawn for _, drawn in subject.values) else CLOSE
    first, rest, both, *apart = (float(value) for value, _ in subject.values)
    size = max(sum(map(abs, apart)) + abs(rest), abs(first) + abs(rest), abs(both), 1e-6)
    if abs(first + rest - both) > close * size:
        got = f"{first:.6g} and {rest:.6g} of two micro-batches, {both:.6g} of both together"
        yield _of_value(NOT_ADDITIVE, subject, got)
    elif abs(sum(apart) - first) > close * size:
        got = f"{sum(apart):.6g} of {len(apart)} micro-batches of one sample, {first:.6g} of all together"
        yield _of_value(NOT_ADDITIVE, subject, got)


def no_batch_norm(subject: TermSubject) -> Iterator[Problem]:
    """Finds a batch norm, whose output depends on what else is in the micro-batch."""
    for path, part in subject.module.named_modules() if subject.module is not None else ():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            got = f"`{path or 'module'}`, a {type(part).__name__}"
            yield problem(NOT_ADDITIVE, subject.term.name, "modules", subject.term, got)


def gradients(subject: TermSubject) -> Iterator[Problem]:
    """Runs the backward pass: it must reach every trainable parameter, or the model, with finite gradients."""
    batch, taps = subject.groups[2]
    leaves = {need: tap.clone().requires_grad_() for need, tap in taps.items()}
    trained = dict(subject.module.named_parameters()) if subject.module is not None else {}
    trained = {name: p for name, p in trained.items() if p.requires_grad}
    term = subject.as_term
    value = whole_value(term, subject.ctx(Group(batch, leaves)))
    tensors = [*leaves.values(), *trained.values()]
    found: Sequence[Tensor | None] = [None] * len(tensors)
    if value.requires_grad:
        with calling(term.name, "value", term):
            found = torch.autograd.grad(value, tensors, allow_unused=True)
    if all(gradient is None for gradient in found):
        got = "a value without gradient to its needs and to its module"
        yield _of_value(DETACHED, subject, got)
        return
    of_module = dict(zip(trained, found[len(leaves) :], strict=True))
    if idle := [f"`{name}`" for name, gradient in of_module.items() if gradient is None]:
        yield _of_value(NO_GRADIENT, subject, f"no gradient for {', '.join(idle[:4])}")
    elif any(gradient is not None and not gradient.sum().isfinite() for gradient in found):
        yield _of_value(NOT_FINITE, subject, "gradients that are not finite")


@torch.no_grad()
def additive_metrics(subject: TermSubject) -> Iterator[Problem]:
    """Adds up the metrics of micro-batches, and their chance levels."""
    term = subject.as_term
    found = [
        plugin_calls.metrics(term, subject.ctx(group)) if group.batch.count[term.name] else {}
        for group in subject.groups
    ]
    for name in found[2]:
        for what in ("total", "chance"):
            one, two, both = (float(getattr(each[name], what)) if name in each else 0.0 for each in found)
            if not math.isfinite(both):
                yield problem(NOT_FINITE, term.name, "metrics", term, f"`{name}`: {what} {both}")
                return
            if abs(one + two - both) > CLOSE * max(abs(one) + abs(two), abs(both), 1e-6):
                got = f"`{name}`: {what} {one:.6g} and {two:.6g} of two micro-batches, {both:.6g} of both"
                yield problem(NOT_ADDITIVE, term.name, "metrics", term, got)
                return


@torch.no_grad()
def sound_images(subject: TermSubject) -> Iterator[Problem]:
    """Asks for the images of a micro-batch."""
    plugin_calls.images(subject.as_term, subject.ctx(subject.groups[2]))
    yield from ()


def some_items(subject: TermSubject) -> Iterator[Problem]:
    """Finds a term without items."""
    if not subject.groups[2].batch.count[subject.term.name]:
        got = f"no item in {plural(len(subject.samples), 'sample')}"
        yield problem(NO_ITEMS, subject.term.name, "count", subject.term, got)


@torch.no_grad()
def finite_metrics(subject: TermSubject) -> Iterator[Problem]:
    """Finds metrics that are not finite, for a term that need not add up."""
    term = subject.as_term
    for name, metric in plugin_calls.metrics(term, subject.ctx(subject.groups[2])).items():
        for what, value in (("total", float(metric.total)), ("chance", float(metric.chance))):
            if not math.isfinite(value):
                yield problem(NOT_FINITE, term.name, "metrics", term, f"`{name}`: {what} {value}")
                return


def term_on_device(subject: TermSubject) -> Iterator[Problem]:
    """Computes the value and the metrics of a term, or weights of rows, and watches where tensors are."""
    group = subject.groups[2]
    gathers = {need: replace(g, host_Q=g.view_Q.clone()) for need, g in group.batch.gathers.items()}
    ctx = subject.ctx(group._replace(batch=replace(group.batch, gathers=gathers)))
    host = [gather.host_Q for gather in gathers.values() if gather.host_Q is not None]
    yield from watched(subject.term, host, lambda: _compute(subject, ctx))


def _compute(subject: TermSubject, ctx: Ctx) -> None:
    if isinstance(subject.term, TokenWeight):
        if plugin_calls.has_weigh(subject.term):
            plugin_calls.weigh(subject.term, ctx)
    else:
        whole_value(subject.as_term, ctx)
        plugin_calls.metrics(subject.as_term, ctx)


CHECKS: tuple[Check[TermSubject], ...] = (
    additive_counts, no_batch_norm, pure_value, finite_value, additive_value, gradients, additive_metrics, sound_images,
)  # fmt: skip
OF_MICRO_BATCHES: tuple[Check[TermSubject], ...] = (
    some_items, pure_value, finite_value, gradients, finite_metrics, sound_images,
)  # fmt: skip


def checks_of(term: Term) -> tuple[Check[TermSubject], ...]:
    """Returns the checks of a term: those of sums only if it has to add up."""
    return CHECKS if term.additive else OF_MICRO_BATCHES
