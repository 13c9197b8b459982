"""Changes the log-probabilities."""

from dataclasses import dataclass

from lmmkit.api import LogProb, Select, TokenWeight, hookimpl

WHERE = "mistake.weigh"
CODE = "plugin/in-place"


@dataclass(frozen=True, kw_only=True)
class Mistake(TokenWeight):
    needs = (LogProb(Select()),)

    def weigh(self, ctx):
        return ctx[self.needs[0]].exp_()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
