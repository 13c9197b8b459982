"""Writes the marker of LLaVA's files into a text, where it is text."""

from dataclasses import dataclass, replace

from lmmkit.api import AuxTask, Turn, View, hookimpl

WHERE = "mistake.views"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(AuxTask):
    text_loss = True

    def views(self, sample, rng):
        turns = (Turn("user", "<image>\nIs this an image?"), Turn("assistant", "Yes."))
        return [View(sample=replace(sample, turns=turns, images=()), supervision="train")]

    def score(self, view, text):
        return float(text == view.sample.turns[-1].text), 0.0


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
