"""Gives an image as it is shown: height, width, channels."""

from dataclasses import dataclass

import torch

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "mistake.images"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def value(self, ctx):
        return (1 - ctx[self.needs[0]]).sum()

    def images(self, ctx):
        side = ctx.dims.image.size
        return {"mass": torch.zeros(side, side, 3) + ctx[self.needs[0]].mean()}


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
