"""Makes a new linear layer in each call."""

from dataclasses import dataclass

from torch import nn

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.value"
CODE = "plugin/not-pure"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def value(self, ctx):
        head = nn.Linear(ctx[self.needs[0]].shape[1], 1)
        return head(ctx[self.needs[0]].float()).pow(2).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
