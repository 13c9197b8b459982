"""ROSS (arXiv 2410.09575): states of image rows must suffice to take the noise out of the image's features.

A small network gets a noisy target and the state of the row after the last block, and predicts the noise; so
the decoder must keep the image although only text is supervised. Simplified: the targets are normalised features
of a teacher or of the model's own encoder, not latents of a VAE, and the network treats each row alone, with a
noise level of its own.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.api import Ctx, Dims, HiddenAt, Loss, Select, TeacherAt, VisionAt, hookimpl

IMAGES = Select(kind="image")


class Denoiser(nn.Module):
    """Predicts the noise of a target from the noisy target, its noise level and a state."""

    def __init__(self, state: int, target: int, width: int):
        super().__init__()
        self.state, self.noisy = nn.Linear(state, width), nn.Linear(target + 2, width)
        self.out = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, target))

    def forward(self, state_QD: Tensor, noisy_QD: Tensor, level_Q2: Tensor) -> Tensor:
        return self.out(self.state(state_QD) + self.noisy(torch.cat([noisy_QD, level_Q2], -1)))


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Loss):
    """Adds the mean squared error of the predicted noise, the mean over image rows and features.

    width: of the network that predicts the noise.
    teacher: whose features are the targets; "" for the model's own encoder.
    """

    width: int = 1024
    teacher: str = ""

    @property
    def needs(self) -> tuple[HiddenAt, VisionAt | TeacherAt]:
        return HiddenAt(IMAGES), TeacherAt(self.teacher, IMAGES) if self.teacher else VisionAt(IMAGES)

    def check(self, dims: Dims) -> str:
        return "" if self.width > 0 else f"width: {self.width}, which is not above 0"

    def modules(self, dims: Dims) -> Denoiser:
        target = dims.teachers[self.teacher] if self.teacher else dims.image
        return Denoiser(dims.width, target.width, self.width)

    def value(self, ctx: Ctx) -> Tensor:
        states_QD, features_QD = (ctx[need] for need in self.needs)
        target_QD = F.layer_norm(features_QD.float(), features_QD.shape[-1:])
        noise_QD = torch.randn(target_QD.shape, generator=ctx.rng).to(target_QD)
        angle_Q1 = torch.rand(len(target_QD), 1, generator=ctx.rng).to(target_QD) * math.pi / 2
        level_Q2 = torch.cat([angle_Q1.cos(), angle_Q1.sin()], -1)
        noisy_QD = level_Q2[:, :1] * target_QD + level_Q2[:, 1:] * noise_QD
        assert ctx.module is not None, "`modules` builds it"
        predicted_QD = ctx.module(states_QD, noisy_QD.to(states_QD), level_Q2.to(states_QD))
        return (predicted_QD.float() - noise_QD).square().mean(-1).sum()

    def chance(self, dims: Dims) -> float:
        return 1.0  # the variance of the noise, for a prediction of 0


@hookimpl
def lmmkit_components():
    return {"reconstruct": Reconstruct}
