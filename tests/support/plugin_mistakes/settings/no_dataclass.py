"""Forgets `@dataclass`."""

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "plugins.mistake"
CODE = "plugin/not-a-component"


class Mistake(Loss):
    floor: float = 0.5

    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def value(self, ctx):
        return (1 - ctx[self.needs[0]]).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
