"""A plugin as it was written for API 1, in which `View` had `supervised`."""

from dataclasses import dataclass, replace
from typing import ClassVar

from lmmkit.api import AuxTask, Turn, View, hookimpl


@dataclass(frozen=True, kw_only=True)
class Repeat(AuxTask):
    text_loss: ClassVar[bool] = True

    def views(self, sample, rng):
        answers = [turn for turn in sample.turns if turn.role == "assistant"]
        question = Turn("user", f"Repeat: {answers[0].text}", images=len(sample.images))
        return [View(sample=replace(sample, turns=(question, answers[0])), supervised=True)]


@hookimpl
def lmmkit_components():
    return {"repeat": Repeat}
