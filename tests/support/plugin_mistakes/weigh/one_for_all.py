"""Returns one weight for all rows."""

from dataclasses import dataclass

from lmmkit.api import LogProb, Select, TokenWeight, hookimpl

WHERE = "mistake.weigh"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(TokenWeight):
    needs = (LogProb(Select()),)

    def weigh(self, ctx):
        return ctx[self.needs[0]].exp().mean()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
