"""Counts samples, and gives a row for each of their two views."""

from dataclasses import dataclass, replace

from lmmkit.api import ExtraView, HiddenMean, Select, StepTerm, View, hookimpl

WHERE = "mistake.embed"
CODE = "plugin/returned"
READER = "reader"


@dataclass(frozen=True, kw_only=True)
class Mistake(StepTerm):
    needs = (HiddenMean(Select(view="reader")),)

    def count(self, batch):
        return batch.samples_with(*self.needs)

    def embed(self, ctx):
        return ctx[self.needs[0]].float()

    def step_value(self, items, module):
        return (items @ items.T).logsumexp(-1).sum()


@dataclass(frozen=True, kw_only=True)
class Reader(ExtraView):
    def views(self, sample, rng):
        return [View(sample=replace(sample, system=text)) for text in ("One.", "Two.")]


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake, "reader": Reader}
