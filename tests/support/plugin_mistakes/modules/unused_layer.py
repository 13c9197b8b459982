"""Makes a layer that it never uses."""

from dataclasses import dataclass

from torch import nn

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.value"
CODE = "plugin/no-gradient"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def modules(self, dims):
        return nn.ModuleDict({"used": nn.Linear(dims.width, 4), "unused": nn.Linear(dims.width, 4)})

    def value(self, ctx):
        return ctx.module["used"](ctx[self.needs[0]].float()).pow(2).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
