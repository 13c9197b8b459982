"""Checks of a term on real micro-batches and drawn needs: sums over items, on the graph, without side effects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple
from zlib import crc32

import torch
from torch import Tensor, nn

from lmmkit import plugin_calls
from lmmkit.api.batch import Batch, Ragged
from lmmkit.api.components import Loss, Reader, RowLoss, StepTerm, Term, TokenWeight
from lmmkit.api.ctx import Ctx, Moment
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import LogitsAt, Need
from lmmkit.api.sample import Image, ImageFit
from lmmkit.data.packing import Packer, SizedSample, read_images
from lmmkit.errors import Problem
from lmmkit.errors.dry_run import (
    DETACHED,
    IN_PLACE,
    NO_GRADIENT,
    NO_ITEMS,
    NOT_ADDITIVE,
    NOT_FINITE,
    NOT_PURE,
)
from lmmkit.plan.dry_run.drawn import LOGITS, concatenated, drawn
from lmmkit.plan.dry_run.subject import Check, global_seed, problem
from lmmkit.plugin_calls.devices import watched
from lmmkit.plugin_calls.guard import calling, returned, shown

CALLS = 2  # of `value` with the same inputs, and one more
APART = 4  # samples with a micro-batch of their own
CLOSE = 1e-3  # relative; sums of float32 in another order differ by less
ROUGH = 0.3  # the same for terms that draw from `ctx.rng`: other draws in another micro-batch
MOMENT = Moment(step=1, progress=0.5)


class Group(NamedTuple):
    """Holds a micro-batch and the tensors of a term's needs."""

    batch: Batch
    taps: Mapping[Need, Tensor]


@dataclass(frozen=True)
class TermSubject:
    """Holds a term (or what weights rows), its filled module, and laid-out samples."""

    term: Reader
    module: nn.Module | None
    packer: Packer
    samples: Sequence[SizedSample]
    dims: Dims

    def pack(self, samples: Sequence[SizedSample]) -> Batch:
        """Returns the micro-batch of these samples, with drawn images."""
        terms = (self.term,) if isinstance(self.term, Term) else ()
        packer = replace(self.packer, needs=plugin_calls.needs(self.term), terms=terms, teachers={})
        return packer.pack(samples, read_images(samples, self._pixels))[0]

    def _pixels(self, image: Image, fit: ImageFit) -> Tensor:
        """Returns drawn pixels for an image file."""
        size, generator = self.dims.image.size, torch.Generator().manual_seed(crc32(image.path.encode()))
        return torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)

    def drawn(self, samples: Sequence[SizedSample], seed: int = 3) -> Group:
        """Returns a micro-batch of these samples, with drawn tensors of its needs."""
        batch, generator = self.pack(samples), torch.Generator().manual_seed(seed)
        logits = self.dims.vocab if reads_ids(self.term) else LOGITS
        return Group(batch, {n: drawn(n, batch, self.dims, generator, logits) for n in batch.gathers})

    def together(self, samples: Sequence[SizedSample], parts: Sequence[Group]) -> Group:
        """Returns a micro-batch of samples whose needs have the values that they have in `parts`."""
        batch = self.pack(samples)
        return Group(
            batch, {need: concatenated([part.taps[need] for part in parts]) for need in batch.gathers}
        )

    @cached_property
    def apart(self) -> list[Group]:
        """Returns a micro-batch for each of the first samples."""
        return [self.drawn([sample], seed) for seed, sample in enumerate(self.samples[:APART])]

    @cached_property
    def groups(self) -> tuple[Group, Group, Group]:
        """Returns a micro-batch of the first samples, one of the others, and one of all."""
        first, rest = self.together(self.samples[:APART], self.apart), self.drawn(self.samples[APART:], APART)
        return first, rest, self.together(self.samples, [first, rest])

    def ctx(self, group: Group) -> Ctx:
        """Returns what the methods of the term get."""
        return Ctx(self.term.name, group.batch, group.taps, self.module, *MOMENT, dims=self.dims)

    @property
    def as_term(self) -> Term:
        """Returns the component as a term, for checks that weights of rows do not get."""
        assert isinstance(self.term, Term), "these are the checks of terms"
        return self.term

    @cached_property
    def values(self) -> list[tuple[Tensor, bool]]:
        """Returns the values of `groups`, then those of `apart`, as a run computes them, each with whether it
        draws from `ctx.rng`."""
        found = []
        for batch, taps in (*self.groups, *self.apart):
            if not batch.count[self.term.name]:
                found.append((torch.zeros(()), False))
                continue
            ctx = self.ctx(Group(batch, {need: tap.clone().requires_grad_() for need, tap in taps.items()}))
            found.append((_sum(self.as_term, ctx).detach(), "rng" in vars(ctx)))
        return found


def reads_ids(term: Reader) -> bool:
    """Returns whether a term has logits and labels, which may be ids of any tokens: then it needs whole rows."""
    return isinstance(term, RowLoss) and type(term).labels is not Loss.labels


def _sum(term: Term, ctx: Ctx) -> Tensor:
    """Returns what adds up over micro-batches: the value; for a term over a step, a function of each item."""
    if isinstance(term, StepTerm):
        return plugin_calls.embed(term, ctx).sin().sum()
    return _value(term, ctx)


def called(term: Reader) -> str:
    """Returns the method from which the value of a term comes."""
    return "rows" if isinstance(term, RowLoss) else "embed" if isinstance(term, StepTerm) else "value"


def whole_value(term: Term, ctx: Ctx) -> Tensor:
    """Returns the value of a term in a step of one micro-batch."""
    if isinstance(term, StepTerm):
        return plugin_calls.step_value(term, plugin_calls.embed(term, ctx), ctx.module)
    return _value(term, ctx)


def _value(term: Term, ctx: Ctx) -> Tensor:
    if isinstance(term, RowLoss):
        (need,) = plugin_calls.needs(term)
        assert isinstance(need, LogitsAt), "the only need of a `RowLoss`"
        logits_QV = ctx[need]  # of few tokens, if the vocabulary is large
        target_Q = ctx.targets(need) % logits_QV.shape[1]
        teacher = [logits_QV.detach().roll(1, 1)] if need.teacher else []  # of another model, by rows
        labels = ctx.batch.labels_of(term.name)
        beside = (target_Q, *teacher, *labels.values())
        return plugin_calls.losses_of_rows(term, list(labels), logits_QV, *beside).sum()
    return plugin_calls.value(term, ctx)


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
    elif not both:
        yield problem(NO_ITEMS, name, "count", subject.term, f"no item in {len(subject.samples)} samples")


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
            value = _sum(subject.as_term, subject.ctx(Group(batch, handed)))
        found.append(float(value.detach()))
        if any(not torch.equal(handed[need].detach(), tap) for need, tap in taps.items()):
            got = "the tensor of a need is changed"
            yield problem(
                IN_PLACE, subject.term.name, called(subject.term), subject.term, got, expected="a new tensor"
            )
            return
    if changed := [name for name, tensor in kept.items() if not _equal(tensor, before[name])]:
        got = f"`batch.{changed[0]}` is changed"
        yield problem(
            IN_PLACE, subject.term.name, called(subject.term), subject.term, got, expected="a new tensor"
        )
        return
    found.append(float(subject.values[2][0]))
    if len(set(found)) > 1 and all(map(math.isfinite, found)):
        got = f"{', then '.join(f'{value:.6g}' for value in found)} for the same inputs"
        expected = "a value that depends on nothing but `ctx`"
        yield problem(NOT_PURE, subject.term.name, called(subject.term), subject.term, got, expected=expected)


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
            yield problem(
                NOT_FINITE, subject.term.name, called(subject.term), subject.term, f"{float(value)}"
            )
            return


def additive_value(subject: TermSubject) -> Iterator[Problem]:
    """Adds up the values of micro-batches: a SUM over items is the same, however a step is cut."""
    close = ROUGH if any(drawn for _, drawn in subject.values) else CLOSE
    first, rest, both, *apart = (float(value) for value, _ in subject.values)
    size = max(sum(map(abs, apart)) + abs(rest), abs(first) + abs(rest), abs(both), 1e-6)
    if abs(first + rest - both) > close * size:
        got = f"{first:.6g} and {rest:.6g} of two micro-batches, {both:.6g} of both together"
        yield problem(NOT_ADDITIVE, subject.term.name, called(subject.term), subject.term, got)
    elif abs(sum(apart) - first) > close * size:
        got = f"{sum(apart):.6g} of {len(apart)} micro-batches of one sample, {first:.6g} of all together"
        yield problem(NOT_ADDITIVE, subject.term.name, called(subject.term), subject.term, got)


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
        yield problem(DETACHED, term.name, called(term), term, got)
        return
    of_module = dict(zip(trained, found[len(leaves) :], strict=True))
    if idle := [f"`{name}`" for name, gradient in of_module.items() if gradient is None]:
        yield problem(NO_GRADIENT, term.name, called(term), term, f"no gradient for {', '.join(idle[:4])}")
    elif any(gradient is not None and not gradient.sum().isfinite() for gradient in found):
        yield problem(NOT_FINITE, term.name, called(term), term, "gradients that are not finite")


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
    """Finds a term without items, for one that need not add up."""
    if not subject.groups[2].batch.count[subject.term.name]:
        got = f"no item in {len(subject.samples)} samples"
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
