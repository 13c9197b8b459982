"""Reads the labels of a task by the number of a view among all views."""

from dataclasses import dataclass, replace

from lmmkit.api import AuxTask, HiddenMean, Select, View, hookimpl

WHERE = "mistake.value"
CODE = "plugin/raised"


@dataclass(frozen=True, kw_only=True)
class Mistake(AuxTask):
    @property
    def needs(self):
        return (HiddenMean(Select(view=self.name)),)

    def views(self, sample, rng):
        turned = int(rng.integers(2))
        return [View(sample=replace(sample, system="Turned."[: 7 * turned]), labels={"turned": turned})]

    def value(self, ctx):
        turned = ctx.label("turned")[ctx.batch.gathers[self.needs[0]].view_Q]
        return (ctx[self.needs[0]].float().mean(-1) - turned).square().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
