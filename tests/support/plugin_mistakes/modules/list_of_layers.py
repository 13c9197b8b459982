"""Returns a list of modules."""

from dataclasses import dataclass

from torch import nn

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.modules"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def modules(self, dims):
        return [nn.Linear(dims.width, 4), nn.Linear(4, 1)]

    def value(self, ctx):
        return ctx.module[1](ctx.module[0](ctx[self.needs[0]])).float().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
