"""Checks of a term on real micro-batches and drawn needs: sums over items, on the graph, without side effects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from zlib import crc32

import torch
from torch import Tensor, nn

from lmmkit import plugin_calls
from lmmkit.api.batch import Batch
from lmmkit.api.components import Ctx, Moment, Term
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import Need
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
from lmmkit.plan.dry_run.drawn import drawn, joined
from lmmkit.plan.dry_run.subject import Check, global_seed, problem
from lmmkit.plugin_calls.guard import calling, returned, shown

CALLS = 3  # of `value` with the same inputs
CLOSE = 1e-3  # relative; sums of float32 in another order differ by less
ROUGH = 0.3  # the same for terms that draw from `ctx.rng`: other draws in another micro-batch
MOMENT = Moment(step=1, progress=0.5)
Taps = Mapping[Need, Tensor]


@dataclass(frozen=True)
class TermSubject:
    """Holds a term, its filled module, and laid-out samples."""

    term: Term
    module: nn.Module | None
    packer: Packer
    samples: Sequence[SizedSample]
    dims: Dims

    def pack(self, samples: Sequence[SizedSample]) -> Batch:
        """Returns the micro-batch of these samples, with drawn images."""
        packer = replace(self.packer, needs=plugin_calls.needs(self.term), terms=())
        batch, _ = packer.pack(samples, read_images(samples, self._pixels))
        if self.term.name in batch.count:  # a next-token term
            return batch
        return replace(batch, count=batch.count | {self.term.name: plugin_calls.count(self.term, batch)})

    def _pixels(self, image: Image, fit: ImageFit) -> Tensor:
        """Returns drawn pixels for an image file."""
        size, generator = self.dims.image.size, torch.Generator().manual_seed(crc32(image.path.encode()))
        return torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)

    @cached_property
    def apart(self) -> list[tuple[Batch, dict[Need, Tensor]]]:
        """Returns a micro-batch for each sample, with drawn tensors of its needs."""
        generator = torch.Generator().manual_seed(3)
        batches = [self.pack([sample]) for sample in self.samples]
        return [(b, {need: drawn(need, b, self.dims, generator) for need in b.gathers}) for b in batches]

    def group(self, start: int, stop: int) -> tuple[Batch, dict[Need, Tensor]]:
        """Returns one micro-batch of some samples; its needs have the values that they have in `apart`."""
        batch, parts = self.pack(self.samples[start:stop]), [taps for _, taps in self.apart[start:stop]]
        return batch, {need: joined([taps[need] for taps in parts]) for need in batch.gathers}

    @cached_property
    def halves(self) -> list[tuple[Batch, dict[Need, Tensor]]]:
        """Returns two micro-batches, and one of all samples."""
        n = len(self.samples)
        return [self.group(0, n // 2), self.group(n // 2, n), self.group(0, n)]

    def ctx(self, batch: Batch, taps: Taps) -> Ctx:
        """Returns what the methods of the term get."""
        return Ctx(self.term.name, batch, taps, self.module, *MOMENT, dims=self.dims)

    def value(self, batch: Batch, taps: Taps) -> tuple[Tensor, bool]:
        """Returns the value as a run computes it, 0 without items, and whether it draws from `ctx.rng`."""
        if not batch.count[self.term.name]:
            return torch.zeros(()), False
        ctx = self.ctx(batch, {need: tap.detach().clone().requires_grad_() for need, tap in taps.items()})
        return plugin_calls.value(self.term, ctx).detach(), "rng" in vars(ctx)


def additive_counts(subject: TermSubject) -> Iterator[Problem]:
    """Adds up the counts of micro-batches: they are divided by as one number, however a step is cut."""
    name = subject.term.name
    first, second, both = (batch.count[name] for batch, _ in subject.halves)
    apart = sum(batch.count[name] for batch, _ in subject.apart)
    if first + second != both or apart != both:
        got = f"{first} and {second} items in two micro-batches, {both} in both together, {apart} sample by sample"
        yield problem(NOT_ADDITIVE, name, "count", subject.term, got)
    elif subject.pack([]).count[name]:
        got = f"{subject.pack([]).count[name]} items in a micro-batch without samples"
        yield problem(NOT_ADDITIVE, name, "count", subject.term, got)
    elif not both:
        yield problem(NO_ITEMS, name, "count", subject.term, f"no item in {len(subject.samples)} samples")


def pure_value(subject: TermSubject) -> Iterator[Problem]:
    """Calls `value` several times: it must give one number, and leave the needs and the batch as they are."""
    batch, taps = subject.halves[2]
    kept, found = _tensors(batch), []
    before = {name: tensor.clone() for name, tensor in kept.items()}
    for call in range(CALLS):
        given = {need: tap.clone() for need, tap in taps.items()}
        leaves = {need: tap.requires_grad_() for need, tap in given.items()}
        handed = {need: tap.clone() for need, tap in leaves.items()}  # a leaf refuses changes in place
        with global_seed(call):
            value = plugin_calls.value(subject.term, subject.ctx(batch, handed))
        found.append(float(value.detach()))
        if any(not torch.equal(handed[need].detach(), tap) for need, tap in taps.items()):
            got = "the tensor of a need is changed"
            yield problem(IN_PLACE, subject.term.name, "value", subject.term, got, expected="a new tensor")
            return
    if changed := [name for name, tensor in kept.items() if not torch.equal(tensor, before[name])]:
        got = f"`batch.{changed[0]}` is changed"
        yield problem(IN_PLACE, subject.term.name, "value", subject.term, got, expected="a new tensor")
    elif len(set(found)) > 1 and all(map(math.isfinite, found)):
        got = f"{', then '.join(f'{value:.6g}' for value in found)} for the same inputs"
        expected = "a value that depends on nothing but `ctx`"
        yield problem(NOT_PURE, subject.term.name, "value", subject.term, got, expected=expected)


def _tensors(batch: Batch) -> dict[str, Tensor]:
    found = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)} | {
        f"labels['{name}']": label for name, label in batch.labels.items()
    }


def finite_value(subject: TermSubject) -> Iterator[Problem]:
    """Finds values that are NaN, infinite or of another type than float32."""
    for batch, taps in (*subject.halves, *subject.apart):
        value, _ = subject.value(batch, taps)
        if value.dtype != torch.float32:
            raise returned(subject.term.name, "value", subject.term, shown(value), "a float32 scalar")
        if not value.isfinite():
            yield problem(NOT_FINITE, subject.term.name, "value", subject.term, f"{float(value)}")
            return


def additive_value(subject: TermSubject) -> Iterator[Problem]:
    """Adds up the values of micro-batches: a SUM over items is the same, however a step is cut."""
    found = [subject.value(*group) for group in (*subject.halves, *subject.apart)]
    close = ROUGH if any(drawn for _, drawn in found) else CLOSE
    first, second, both, *apart = (float(value) for value, _ in found)
    size = max(sum(map(abs, apart)), abs(first) + abs(second), abs(both), 1e-6)
    if abs(first + second - both) > close * size:
        got = f"{first:.6g} and {second:.6g} of two micro-batches, {both:.6g} of both together"
        yield problem(NOT_ADDITIVE, subject.term.name, "value", subject.term, got)
    elif abs(sum(apart) - both) > close * size:
        got = f"{sum(apart):.6g} of {len(apart)} micro-batches of one sample, {both:.6g} of all together"
        yield problem(NOT_ADDITIVE, subject.term.name, "value", subject.term, got)


def no_batch_norm(subject: TermSubject) -> Iterator[Problem]:
    """Finds a batch norm, whose output depends on what else is in the micro-batch."""
    for path, part in subject.module.named_modules() if subject.module is not None else ():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            got = f"`{path or 'module'}`, a {type(part).__name__}"
            yield problem(NOT_ADDITIVE, subject.term.name, "modules", subject.term, got)


def gradients(subject: TermSubject) -> Iterator[Problem]:
    """Runs the backward pass: it must reach every trainable parameter, or the model, with finite gradients."""
    batch, taps = subject.halves[2]
    leaves = {need: tap.clone().requires_grad_() for need, tap in taps.items()}
    trained = dict(subject.module.named_parameters()) if subject.module is not None else {}
    trained = {name: p for name, p in trained.items() if p.requires_grad}
    value, term = plugin_calls.value(subject.term, subject.ctx(batch, leaves)), subject.term
    tensors = [*leaves.values(), *trained.values()]
    found: Sequence[Tensor | None] = [None] * len(tensors)
    if value.requires_grad:
        with calling(term.name, "value", term):
            found = torch.autograd.grad(value, tensors, allow_unused=True)
    if all(gradient is None for gradient in found):
        got = "a value without gradient to its needs and to its module"
        yield problem(DETACHED, term.name, "value", term, got)
        return
    of_module = dict(zip(trained, found[len(leaves) :], strict=True))
    if idle := [f"`{name}`" for name, gradient in of_module.items() if gradient is None]:
        yield problem(NO_GRADIENT, term.name, "value", term, f"no gradient for {', '.join(idle[:4])}")
    elif any(gradient is not None and not gradient.isfinite().all() for gradient in found):
        yield problem(NOT_FINITE, term.name, "value", term, "gradients that are not finite")


@torch.no_grad()
def additive_metrics(subject: TermSubject) -> Iterator[Problem]:
    """Adds up the metrics of micro-batches, and their chance levels."""
    term, groups = subject.term, []
    for batch, taps in subject.halves:
        ctx = subject.ctx(batch, taps)
        groups.append(plugin_calls.metrics(term, ctx) if batch.count[term.name] else {})
    for name in groups[2]:
        for what in ("total", "chance"):
            one, two, both = (float(getattr(found[name], what)) if name in found else 0.0 for found in groups)
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
    plugin_calls.images(subject.term, subject.ctx(*subject.halves[2]))
    yield from ()


CHECKS: tuple[Check[TermSubject], ...] = (
    additive_counts, no_batch_norm, pure_value, finite_value, additive_value, gradients, additive_metrics, sound_images,
)  # fmt: skip
