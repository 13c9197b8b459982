"""A task with three views to compare, and samples for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmmkit.api import AuxTask, LogProb, LogSumExp, Sample, Select, Turn, View
from lmmkit.data.micro_batch.laid_out import SizedSample
from lmmkit.data.packing import Packer
from tests.support import paper_objective
from tests.support.tiny_model import SPEC


@dataclass(frozen=True)
class Faint:
    """An image whose left half is gone."""

    def __call__(self, pixels_CXY: Tensor) -> Tensor:
        return pixels_CXY.flip(-1) * 0.5


@dataclass(frozen=True, kw_only=True)
class Prefer(AuxTask):
    """Compares the answer with the answer reversed, and with the answer to another image.

    The value is smooth and nonlinear in every log-probability, and each of its items is a sample.
    """

    roles = ("chosen", "rejected", "faint")
    model: str = "policy"

    def read(self, role: str, model: str = "policy") -> LogProb:
        return LogProb(Select(view=self.name, view_role=role, turn=-1), model)

    @property
    def needs(self):
        models = dict.fromkeys(("policy", self.model))
        scores = [self.read(role, model) for role in self.roles for model in models]
        return (*scores, LogSumExp(Select(view=self.name, view_role="rejected")))

    def views(self, sample, rng):
        *asked, answer = sample.turns
        worse = replace(sample, turns=(*asked, Turn("assistant", answer.text[::-1] + "!" * len(asked))))
        faint = replace(sample, images=tuple(replace(image, edit=Faint()) for image in sample.images))
        found = [("chosen", sample), ("rejected", worse), *([("faint", faint)] if sample.images else [])]
        return [View(sample=s, role=role, supervision="read") for role, s in found]

    def count(self, batch):
        return batch.samples_with(self.read("chosen"), self.read("rejected"))

    def value(self, ctx):
        return value([self.scores(ctx, *pair) for pair in self.pairs()]) + ctx[self.needs[-1]].square().sum()

    def pairs(self):
        return [("chosen", "rejected"), ("chosen", "faint")]

    def scores(self, ctx, *roles: str) -> list[Tensor]:
        sums = ctx.by_sample(*(self.read(role) for role in roles))
        if self.model == "policy":
            return list(sums)
        refs = ctx.by_sample(*(self.read(role, self.model) for role in roles))
        return [own - ref for own, ref in zip(sums, refs, strict=True)]


def value(pairs: Sequence[Sequence[Tensor]]) -> Tensor:
    """Returns DPO's value at a temperature of 0.5."""
    return -sum(torch.nn.functional.logsigmoid(0.5 * (a - b)).sum() for a, b in pairs)


TASK = Prefer(name="prefer")
SAMPLES: tuple[Sample, ...] = (*paper_objective.CAPTIONS, *paper_objective.CHATS)


def packer(task: Prefer = TASK, *, share: bool = True) -> Packer:
    return Packer(image=SPEC, needs=task.needs, terms=(task,), share=share)


def sized(samples: Sequence[Sample], made: Packer, task: Prefer = TASK, **settings) -> list[SizedSample]:
    views = replace(paper_objective.views(**settings), tasks=(task,), edits=())
    return [made.sized(views.fitting(sample, 0, Counter())) for sample in samples]
