"""Detaches what it reads."""

from dataclasses import dataclass

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.value"
CODE = "plugin/detached"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def value(self, ctx):
        x = ctx[self.needs[0]].detach().float()
        return x.pow(2).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
