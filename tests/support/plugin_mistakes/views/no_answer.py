"""Asks and has no answer to learn."""

from dataclasses import dataclass, replace
from typing import ClassVar

from lmmkit.api import AuxTask, Turn, View, hookimpl

WHERE = "mistake.views"
CODE = "plugin/no-items"


@dataclass(frozen=True, kw_only=True)
class Mistake(AuxTask):
    text_loss: ClassVar[bool] = True

    def views(self, sample, rng):
        question = Turn("user", "Describe the image.", images=len(sample.images))
        return [View(sample=replace(sample, turns=(question,)), supervision="train")]

    def score(self, view, text):
        return 0.0, 0.0


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
