"""Takes the first word of a text that may be empty."""

from dataclasses import dataclass, replace

from lmmkit.api import AuxTask, Turn, View, hookimpl

WHERE = "mistake.score"
CODE = "plugin/raised"


@dataclass(frozen=True, kw_only=True)
class Mistake(AuxTask):
    text_loss = True

    def views(self, sample, rng):
        turns = (Turn("user", "Is it so?"), Turn("assistant", "yes"))
        return [View(sample=replace(sample, turns=turns, images=()), supervision="train")]

    def score(self, view, text):
        return float(text.split()[0] == "yes"), 0.5


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
