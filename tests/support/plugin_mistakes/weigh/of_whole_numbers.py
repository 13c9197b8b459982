"""Returns weights that are whole numbers."""

from dataclasses import dataclass

from lmmkit.api import LogProb, Select, TokenWeight, hookimpl

WHERE = "mistake.weigh"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(TokenWeight):
    needs = (LogProb(Select()),)

    def weigh(self, ctx):
        return (ctx[self.needs[0]] < -1).long()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
