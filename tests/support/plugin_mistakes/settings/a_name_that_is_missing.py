"""Annotates a setting with a name that is not imported."""

from dataclasses import dataclass

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "plugins.mistake"
CODE = "plugin/setting-type"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    scale: "Tensor" = None  # noqa: F821

    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def value(self, ctx):
        return (1 - ctx[self.needs[0]]).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
