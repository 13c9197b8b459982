"""Misspells a name of the batch."""

from dataclasses import dataclass

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "mistake.value"
CODE = "plugin/raised"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def value(self, ctx):
        return ctx[self.needs[0]].sum() / len(ctx.batch.view)


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
