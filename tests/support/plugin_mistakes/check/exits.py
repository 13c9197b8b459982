"""Ends the process."""

from dataclasses import dataclass

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.check"
CODE = "plugin/raised"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    needs = (HiddenAt(Select(supervised=True)),)

    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()

    def check(self, dims):
        raise SystemExit("the model is too small")


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
