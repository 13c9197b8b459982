"""Inserts by the length of the answer, which no prompt has."""

from dataclasses import dataclass

from lmmkit.api import HiddenAt, Insert, LearnedTokens, Loss, Select, TokenStrategy, hookimpl

WHERE = "mistake.edit"
CODE = "plugin/edit-key"
READER = "reader"


@dataclass(frozen=True, kw_only=True)
class Mistake(TokenStrategy):
    provides = ("look",)

    def edit(self, view):
        long = sum(len(turn.text) for turn in view.sample.turns if turn.role == "assistant") > 8
        return [Insert("after_image", "look")] if long else []

    def modules(self, dims):
        return LearnedTokens(1, dims.width)


@dataclass(frozen=True, kw_only=True)
class Reader(Loss):
    needs = (HiddenAt(Select(token_name="look")),)

    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake, "reader": Reader}
