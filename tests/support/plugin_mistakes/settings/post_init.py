"""Fails when it is built."""

from dataclasses import dataclass

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "mistake.__post_init__"
CODE = "plugin/raised"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    floor: float = 0.5

    def __post_init__(self):
        object.__setattr__(self, "ceiling", self.floor / 0)

    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def value(self, ctx):
        return (1 - ctx[self.needs[0]]).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
