"""Returns a selector instead of a need."""

from dataclasses import dataclass

from lmmkit.api import Loss, Select, hookimpl

WHERE = "mistake.needs"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (Select(supervised=True),)

    def value(self, ctx):
        return ctx[self.needs[0]].float().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
