"""Writes `value` for a task with `text_loss`, which is never called."""

from dataclasses import dataclass, replace

from lmmkit.api import AuxTask, View, hookimpl

WHERE = "mistake.value"
CODE = "plugin/unused-method"


@dataclass(frozen=True, kw_only=True)
class Mistake(AuxTask):
    text_loss = True

    def views(self, sample, rng):
        return [View(sample=replace(sample, system="Answer in one word."), supervision="train")]

    def value(self, ctx):
        return ctx.taps[self.needs[0]].sum()

    def score(self, view, text):
        return float(text == view.sample.turns[-1].text), 0.0


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
