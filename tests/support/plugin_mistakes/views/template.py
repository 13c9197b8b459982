"""Names a chat template as LLaVA does."""

from dataclasses import dataclass, replace

from lmmkit.api import AuxTask, Turn, View, hookimpl

WHERE = "mistake.views"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(AuxTask):
    text_loss = True

    def views(self, sample, rng):
        turns = (Turn("user", "Is it so?"), Turn("assistant", "yes"))
        asked = replace(sample, turns=turns, images=(), template="llava_v1")
        return [View(sample=asked, supervision="train")]

    def score(self, view, text):
        return float(text == view.sample.turns[-1].text), 0.0


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
