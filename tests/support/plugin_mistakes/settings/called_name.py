"""Calls a setting `name`, which is the name of the instance."""

from dataclasses import dataclass

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "plugins.mistake"
CODE = "plugin/reserved-setting"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    name: str = "all"

    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def value(self, ctx):
        return (1 - ctx[self.needs[0]]).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
