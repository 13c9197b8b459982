"""Divides by the number of generated words."""

from dataclasses import dataclass, replace
from typing import ClassVar

from lmmkit.api import AuxTask, Turn, View, hookimpl

WHERE = "mistake.score"
CODE = "plugin/raised"


@dataclass(frozen=True, kw_only=True)
class Mistake(AuxTask):
    text_loss: ClassVar[bool] = True

    def views(self, sample, rng):
        answers = [t for t in sample.turns if t.role == "assistant"]
        question = Turn("user", "Describe the image.", images=len(sample.images))
        return [View(sample=replace(sample, turns=(question, answers[0])), supervision="train")]

    def score(self, view, text):
        return 1 / len(text.split()), 0.0


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
