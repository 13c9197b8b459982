"""Would fail without rows: `value` is not called for a micro-batch without items."""

from dataclasses import dataclass

from lmmkit.api import HiddenAt, Loss, Select, hookimpl


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def value(self, ctx):
        x = ctx[self.needs[0]].float()
        return x.pow(2).sum() + 0 * x.max()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
