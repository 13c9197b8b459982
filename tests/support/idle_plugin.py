"""One component of each kind, for tests: terms without items, and modules with a parameter that nothing uses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from lmmkit.api import (
    AuxTask,
    ExtraView,
    HiddenAt,
    HiddenMean,
    ImageReducer,
    Insert,
    LearnedTokens,
    LogProb,
    Loss,
    RowLoss,
    Select,
    StepTerm,
    TokenStrategy,
    TokenWeight,
    View,
    hookimpl,
)


class Spare(nn.Module):
    """Has a parameter that is used, and one that is not."""

    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.used)
        nn.init.ones_(self.spare)


class SpareTokens(LearnedTokens):
    """Holds a learned token, and a parameter that is not used."""

    def __init__(self, width: int):
        super().__init__(1, width)
        self.spare = nn.Parameter(torch.empty(1))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.spare)


class WithSpare:
    """Gives a component such a module."""

    def modules(self, dims):
        return Spare()


@dataclass(frozen=True, kw_only=True)
class Silent(ExtraView):
    """Makes no views, so what reads them has no items. `one`: makes a view of each sample."""

    one: bool = False

    def views(self, sample, rng):
        texts = tuple(replace(turn, images=0, places=()) for turn in sample.turns)
        blind = replace(sample, turns=texts, images=())
        return [View(sample=blind, supervision="read")] if self.one else []


@dataclass(frozen=True, kw_only=True)
class Mean(WithSpare, Loss):
    view: str = "silent"

    @property
    def needs(self):
        return (HiddenAt(Select(view=self.view, role="response")),)

    def value(self, ctx):
        return (ctx[self.needs[0]].float() * ctx.module.used).square().sum()


@dataclass(frozen=True, kw_only=True)
class MicroBatch(Mean):
    additive = False


@dataclass(frozen=True, kw_only=True)
class Rows(WithSpare, RowLoss):
    at = Select(view="silent")

    def rows(self, logits_CV, target_C):
        return F.cross_entropy(logits_CV, target_C, reduction="none")


@dataclass(frozen=True, kw_only=True)
class Whole(WithSpare, StepTerm):
    view: str = "silent"

    @property
    def needs(self):
        return (HiddenMean(Select(view=self.view)),)

    def embed(self, ctx):
        return ctx[self.needs[0]].float() * ctx.module.used

    def step_value(self, items, module):
        return (items - items.mean(0)).square().sum()


@dataclass(frozen=True, kw_only=True)
class NoViews(WithSpare, AuxTask):
    @property
    def needs(self):
        return (HiddenMean(Select(view=self.name)),)

    def views(self, sample, rng):
        return []

    def value(self, ctx):
        return (ctx[self.needs[0]].float() * ctx.module.used).square().sum()


@dataclass(frozen=True, kw_only=True)
class Weigher(WithSpare, TokenWeight):
    """Uses its parameter for weights, through which no gradient flows."""

    needs = (LogProb(Select()),)

    def weigh(self, ctx):
        return ctx[self.needs[0]].exp() * ctx.module.used


@dataclass(frozen=True, kw_only=True)
class Registers(TokenStrategy):
    provides = ("spare",)
    unread = True

    def edit(self, view):
        return [Insert("after_image", "spare")]

    def modules(self, dims):
        return SpareTokens(dims.width)


@dataclass(frozen=True, kw_only=True)
class Half(WithSpare, ImageReducer):
    def tokens(self, dims):
        return dims.image.tokens // 2

    def reduce(self, features_INE, connect, module):
        return connect(features_INE[:, : features_INE.shape[1] // 2] * module.used)


@hookimpl
def lmmkit_components():
    return {
        "silent": Silent, "mean": Mean, "micro_batch": MicroBatch, "rows": Rows, "whole": Whole, "no_views": NoViews,
        "weigher": Weigher, "registers": Registers, "halves": Half,
    }  # fmt: skip
