"""Returns the score without the chance level."""

from dataclasses import dataclass, replace
from typing import ClassVar

from lmmkit.api import AuxTask, Turn, View, hookimpl

WHERE = "mistake.score"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(AuxTask):
    text_loss: ClassVar[bool] = True

    def views(self, sample, rng):
        answers = [t for t in sample.turns if t.role == "assistant"]
        question = Turn("user", "Describe the image.", images=len(sample.images))
        return [View(sample=replace(sample, turns=(question, answers[0])), supervision="train")]

    def score(self, view, text):
        return float(text == view.sample.turns[1].text)


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
