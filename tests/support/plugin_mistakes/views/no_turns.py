"""Makes a view without a turn."""

from dataclasses import dataclass, replace

from lmmkit.api import AuxTask, HiddenMean, Select, View, hookimpl

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
        return [View(sample=replace(sample, turns=(), images=()))]


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
