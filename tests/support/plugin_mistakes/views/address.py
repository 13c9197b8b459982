"""Decides by the address of an object."""

from dataclasses import dataclass, replace

from lmmkit.api import AuxTask, HiddenMean, Select, View, hookimpl

WHERE = "mistake.views"
CODE = "plugin/not-pure"


@dataclass(frozen=True, kw_only=True)
class Mistake(AuxTask):
    @property
    def needs(self):
        return (HiddenMean(Select(view=self.name)),)

    def views(self, sample, rng):
        word = ("See.", "Look.")[id(sample) // 64 % 2]
        return [View(sample=replace(sample, system=word))]

    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
