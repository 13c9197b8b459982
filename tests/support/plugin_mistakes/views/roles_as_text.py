"""Gives roles as one text."""

from dataclasses import dataclass

from lmmkit.api import AuxTask, HiddenMean, Select, View, hookimpl

WHERE = "mistake.roles"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(AuxTask):
    roles = "ab"

    @property
    def needs(self):
        return (HiddenMean(Select(view=self.name)),)

    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()

    def views(self, sample, rng):
        return [View(sample=sample, role="a")]


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
