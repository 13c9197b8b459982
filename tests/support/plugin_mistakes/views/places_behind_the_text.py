"""Puts an image behind the end of the text."""

from dataclasses import dataclass, replace

from lmmkit.api import AuxTask, HiddenMean, Select, Turn, View, hookimpl

WHERE = "mistake.views"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(AuxTask):
    @property
    def needs(self):
        return (HiddenMean(Select(view=self.name)),)

    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()

    def views(self, sample, rng):
        turn = Turn("user", "Look.", images=len(sample.images), places=(99,) * len(sample.images))
        return [View(sample=replace(sample, turns=(turn,)))]


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
