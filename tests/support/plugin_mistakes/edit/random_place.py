"""Draws the place."""

import random
from dataclasses import dataclass
from typing import ClassVar

from lmmkit.api import HiddenAt, Insert, LearnedTokens, Loss, Select, TokenStrategy, hookimpl

WHERE = "plugins.mistake"
CODE = "plugin/not-pure"
READER = "reader"


@dataclass(frozen=True, kw_only=True)
class Reader(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(token_name="mark")),)

    def value(self, ctx):
        return ctx[self.needs[0]].float().pow(2).sum()


@dataclass(frozen=True, kw_only=True)
class Mistake(TokenStrategy):
    provides: ClassVar[tuple[str, ...]] = ("mark",)

    def edit(self, view):
        return [Insert(random.choice(["end", "before_response"]), "mark")]

    def modules(self, dims):
        return LearnedTokens(1, dims.width)


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake, "reader": Reader}
