"""Trains on text that is not supervised."""

from dataclasses import dataclass, replace
from typing import ClassVar

from lmmkit.api import AuxTask, Turn, View, hookimpl

WHERE = "mistake.views"
CODE = "plugin/no-items"


@dataclass(frozen=True, kw_only=True)
class Mistake(AuxTask):
    text_loss: ClassVar[bool] = True

    def views(self, sample, rng):
        answers = [t for t in sample.turns if t.role == "assistant"]
        question = Turn("user", "Describe the image.", images=len(sample.images))
        return [View(sample=replace(sample, turns=(question, answers[0])))]

    def score(self, view, text):
        return float(text == view.sample.turns[1].text), 0.0


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
