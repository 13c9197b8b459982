"""A term with micro-batches of real samples and drawn needs, and how its value is computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple
from zlib import crc32

import torch
from torch import Tensor, nn

from lmmkit import plugin_calls
from lmmkit.api.batch import Batch
from lmmkit.api.components import Loss, Reader, RowLoss, StepTerm, Term
from lmmkit.api.ctx import Ctx, Moment
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import LogitsAt, Need
from lmmkit.api.sample import Image, ImageFit
from lmmkit.data.image_files.image_file import image_place
from lmmkit.data.images import pixels_shape
from lmmkit.data.micro_batch.laid_out import SizedSample
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.data.packing import Packer
from lmmkit.plan.dry_run.drawn import LOGITS, concatenated, drawn

APART = 4  # samples with a micro-batch of their own
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
        """Returns drawn pixels for an image file, of the shape that its own have."""
        generator = torch.Generator().manual_seed(crc32(image_place(image).encode()))
        shape = pixels_shape(image, fit, self.dims.image)
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

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
            found.append((summed_value(self.as_term, ctx).detach(), "rng" in vars(ctx)))
        return found


def reads_ids(term: Reader) -> bool:
    """Returns whether a term has logits and labels, which may be ids of any tokens: then it needs whole rows."""
    return isinstance(term, RowLoss) and type(term).labels is not Loss.labels


def summed_value(term: Term, ctx: Ctx) -> Tensor:
    """Returns what adds up over micro-batches: the value; for a term over a step, a function of each item."""
    if isinstance(term, StepTerm):
        return plugin_calls.embed(term, ctx).sin().sum()
    return _value(term, ctx)


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
