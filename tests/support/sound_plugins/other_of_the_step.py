"""Shows the image of another sample of the step."""

from dataclasses import dataclass, replace

from lmmkit.api import AuxTask, HiddenMean, Select, View, hookimpl


@dataclass(frozen=True, kw_only=True)
class Sound(AuxTask):
    others = "step"

    @property
    def needs(self):
        return (HiddenMean(Select(view=self.name)),)

    def views(self, sample, rng, others):
        if not sample.images:
            return []
        found = [other for other in others(3) if len(other.images) == len(sample.images)]
        return [View(sample=replace(sample, images=other.images)) for other in found]

    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Sound}
