"""Has a tensor as a setting."""

from dataclasses import dataclass

import torch

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "plugins.mistake"
CODE = "plugin/setting-type"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    scale: torch.Tensor = torch.tensor(2.0)  # noqa: RUF009

    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def value(self, ctx):
        return (self.scale * (1 - ctx[self.needs[0]])).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
