"""Trains on the text of a view without a term."""

from dataclasses import dataclass

from lmmkit.api import ExtraView, HiddenMean, Loss, Select, View, hookimpl

WHERE = "mistake.views"
CODE = "plugin/view"
READER = "reader"


@dataclass(frozen=True, kw_only=True)
class Mistake(ExtraView):
    def views(self, sample, rng):
        return [View(sample=sample, supervision="train")]


@dataclass(frozen=True, kw_only=True)
class Reader(Loss):
    needs = (HiddenMean(Select(view="mistake")),)

    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake, "reader": Reader}
