"""VIRAL (arXiv 2509.07979): states in the middle of the decoder keep what a vision encoder saw.

The states of image rows after `layer` blocks go through an MLP, and their cosine similarity with the encoder's
features of the same patches is raised: of a teacher, as DINOv2 in the paper, or of the model's own encoder, without
gradient. Simplified: one layer, and no loss on similarities between rows.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.api import Ctx, Dims, HiddenAt, Loss, Metric, Select, TeacherAt, VisionAt, hookimpl

IMAGES = Select(kind="image")


@dataclass(frozen=True, kw_only=True)
class Viral(Loss):
    """Adds 1 - cosine similarity of projected states and vision features, the mean over image rows.

    layer: the number of decoder blocks before the states are read (the paper: 16 of 32).
    width: of the hidden layers of the projection.
    teacher: whose features they become similar to; "" for the model's own encoder.
    """

    layer: int = 16
    width: int = 2048
    teacher: str = ""

    @property
    def needs(self) -> tuple[HiddenAt, VisionAt | TeacherAt]:
        features = TeacherAt(self.teacher, IMAGES) if self.teacher else VisionAt(IMAGES)
        return HiddenAt(IMAGES, layer=self.layer), features

    def check(self, dims: Dims) -> str:
        return "" if self.width > 0 else f"width: {self.width}, which is not above 0"

    def modules(self, dims: Dims) -> nn.Module:
        target = dims.teachers[self.teacher] if self.teacher else dims.image
        return nn.Sequential(
            nn.Linear(dims.width, self.width), nn.SiLU(), nn.Linear(self.width, self.width), nn.SiLU(),
            nn.Linear(self.width, target.width),
        )  # fmt: skip

    def value(self, ctx: Ctx) -> Tensor:
        return (1 - self._similarity(ctx)).sum()

    def chance(self, dims: Dims) -> float:
        return 1.0  # directions that have nothing to do with each other

    def metrics(self, ctx: Ctx) -> dict[str, Metric]:
        return {"similarity": Metric(self._similarity(ctx).sum(), 0.0)}

    def _similarity(self, ctx: Ctx) -> Tensor:
        states_QD, features_QD = (ctx[need] for need in self.needs)
        assert ctx.module is not None, "`modules` builds it"
        return F.cosine_similarity(ctx.module(states_QD).float(), features_QD.float(), dim=-1)


@hookimpl
def lmmkit_components():
    return {"viral": Viral}
