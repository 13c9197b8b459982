"""A task, its token and a text task that fail on request: `fails` names a method, `gives` what it returns."""

import os
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from lmmkit.api import (
    AuxTask,
    HiddenAt,
    Insert,
    LearnedTokens,
    Metric,
    Select,
    TokenStrategy,
    Turn,
    View,
    hookimpl,
)

WRONG = {
    "none": None, "text": "twelve", "number": 1.5, "list": [1], "vector": torch.ones(3, requires_grad=True),
    "class": nn.Identity, "mapping": {"a": 1.5}, "tensor": {"a": torch.ones(3)},
    "scalar": nn.ParameterList([torch.ones(())]),
}  # fmt: skip


@dataclass(frozen=True)
class Flip:
    fails: str
    gives: str

    def __call__(self, pixels_CXY):
        return result(self, "edit of an image", pixels_CXY.flip(2))


class Head(nn.Linear):
    def __init__(self, width, fails):
        self.fails, self.gives = fails, ""
        super().__init__(width, 2)

    def reset_parameters(self):
        if not self.weight.is_meta:  # `nn.Linear` itself calls this when it is built
            result(self, "reset_parameters", None)
        super().reset_parameters()


class Tokens(LearnedTokens):
    def __init__(self, width, fails, gives):
        super().__init__(1, width)
        self.fails, self.gives = fails, gives

    def forward(self):
        return result(self, "forward", super().forward())


def result(self, method, right):
    """Returns what a method gives: what is right, unless it is to fail."""
    if self.fails not in (method, f"{method} of rank {os.environ.get('RANK')}"):
        return right
    if not self.gives:
        raise KeyError("a key")
    return WRONG[self.gives]


@dataclass(frozen=True, kw_only=True)
class Faulty(AuxTask):
    fails: str = ""
    gives: str = ""

    @property
    def needs(self):
        return result(self, "needs", (HiddenAt(Select(view=self.name, token_name="look")),))

    def modules(self, dims):
        return result(self, "modules", Head(dims.width, self.fails))

    def check(self, dims):
        return result(self, "check", "")

    def chance(self, dims):
        return result(self, "chance", 0.7)

    def count(self, batch):
        return result(self, "count", super().count(batch))

    def views(self, sample, rng):
        flip = int(rng.integers(2))
        edit = Flip(self.fails, self.gives)
        images = tuple(replace(image, edit=edit) if flip else image for image in sample.images)
        return result(self, "views", [View(sample=replace(sample, images=images), labels={"flip": flip})])

    def value(self, ctx):
        right = F.cross_entropy(ctx.module(ctx[self.needs[0]]).float(), ctx.label("flip"), reduction="sum")
        return result(self, "value", right)

    def metrics(self, ctx):
        return result(self, "metrics", {"n": Metric(ctx.label("flip").float().sum(), 0.5)})

    def puzzles(self, ctx):
        return result(self, "puzzles", ())

    def images(self, ctx):
        return result(self, "images", {"first": ctx.batch.first_image(ctx.batch.views_of(self.name)[0])})


@dataclass(frozen=True, kw_only=True)
class Token(TokenStrategy):
    fails: str = ""
    gives: str = ""
    provides: ClassVar[tuple[str, ...]] = ("look",)

    def edit(self, view):
        return result(self, "edit", [Insert("end", "look")])

    def modules(self, dims):
        return Tokens(dims.width, self.fails, self.gives)


@dataclass(frozen=True, kw_only=True)
class Echo(AuxTask):
    fails: str = ""
    gives: str = ""
    text_loss: ClassVar[bool] = True

    def views(self, sample, rng):
        answer = next(turn for turn in sample.turns if turn.role == "assistant")
        question = Turn("user", f"Repeat: {answer.text}", images=len(sample.images))
        return [View(sample=replace(sample, turns=(question, answer)), supervision="train")]

    def score(self, view, text):
        return result(self, "score", (float(text == view.sample.turns[1].text), 0.0))

    def text_puzzle(self, view, text):
        return result(self, "text_puzzle", None)


@hookimpl
def lmmkit_components():
    return {"faulty": Faulty, "token": Token, "echo": Echo}
