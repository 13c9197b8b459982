"""Has an infinite gradient where the residual is exactly 0."""

from dataclasses import dataclass

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.value"
CODE = "plugin/not-finite"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def value(self, ctx):
        x = ctx[self.needs[0]].float()
        return (x - x.detach()).norm(dim=-1).pow(0.5).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
