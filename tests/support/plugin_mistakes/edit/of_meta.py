"""Inserts by a field of the record, which no prompt has."""

from dataclasses import dataclass

from lmmkit.api import HiddenAt, Insert, LearnedTokens, Loss, Select, TokenStrategy, hookimpl

WHERE = "mistake.edit"
CODE = "plugin/edit-key"
DATA = True
READER = "reader"


@dataclass(frozen=True, kw_only=True)
class Mistake(TokenStrategy):
    provides = ("look",)

    def edit(self, view):
        return [Insert("before_response", "look")] if view.sample.meta else []

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
