"""Asks for four other samples of a step of four."""

from dataclasses import dataclass, replace

from lmmkit.api import AuxTask, HiddenMean, Select, View, hookimpl

CODE = "plan/others"
WHERE = "plugins.mistake"


@dataclass(frozen=True, kw_only=True)
class Mistake(AuxTask):
    others = "step"

    @property
    def needs(self):
        return (HiddenMean(Select(view=self.name)),)

    def views(self, sample, rng, others):
        return [View(sample=replace(sample, turns=other.turns, images=other.images)) for other in others(4)]

    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
