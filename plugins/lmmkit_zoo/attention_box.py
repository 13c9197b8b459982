"""KLAL (arXiv 2511.12738): the attention of an answer to the image goes to the place that the answer is about.

A record has a box in its field `box`: `[left, top, right, bottom]`, as shares of the image that the model gets. The
attention of the rows that predict its answers, as a distribution over image patches, comes closer to that of the box
(Kullback-Leibler divergence). Simplified: attention is averaged over heads and layers before it is divided by its
sum, where the paper compares each layer; each token of an answer counts, and each patch as much as the box
covers it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from torch import Tensor

from lmmkit.api import AttnTo, Ctx, Dims, Loss, Metric, Sample, Select, hookimpl

LEAST = 1e-12  # attention in a logarithm: softmax may give 0


def is_box(box: Any) -> TypeGuard[Sequence[float]]:
    """Returns whether it is [left, top, right, bottom] as shares of an image."""
    try:
        left, top, right, bottom = map(float, box)
    except (TypeError, ValueError):
        return False
    return 0 <= left < right <= 1 and 0 <= top < bottom <= 1


def covered(box: Sequence[float], grid: tuple[int, int]) -> np.ndarray:
    """Returns for each patch its share of a box, [rows * columns]."""
    left, top, right, bottom = box
    shares = []
    for n, low, high in zip(grid, (top, left), (bottom, right), strict=True):
        edges = np.arange(n + 1) / n
        shares.append(np.clip(edges[1:].clip(max=high) - edges[:-1].clip(min=low), 0, None) / (high - low))
    return np.outer(*shares).flatten()


@dataclass(frozen=True, kw_only=True)
class AttentionBox(Loss):
    """Adds KL(box, attention) of each token of the answers. Tokens of a record without a box count, and add 0.

    The box is on the first image; attention to further images is outside it. For models with a row for each patch.

    layers: whose attention is averaged; "all", or numbers from 0. key: the field of the record.
    """

    layers: Literal["all"] | tuple[int, ...] = "all"
    key: str = "box"

    @property
    def needs(self) -> tuple[AttnTo]:
        return (AttnTo(q=Select(supervised=True, shift=-1), layers=self.layers),)

    def labels(self, sample: Sample, dims: Dims) -> Mapping[str, np.ndarray]:
        box = sample.meta.get(self.key)
        if box is None:
            return {"box": np.zeros(dims.image.tokens)}
        if not is_box(box):
            expected = "[left, top, right, bottom] as shares of the image"
            raise ValueError(f"`{self.key}` of sample {sample.key} is {box}, not {expected}")
        if not isinstance(sample.image_fit, str):
            raise ValueError(f"images of unlike rows ({sample.image_fit}): use `crop`, `pad` or `stretch`")
        return {"box": covered(box, dims.image.grid)}

    def value(self, ctx: Ctx) -> Tensor:
        attention_QK, box_QK = self._both(ctx)
        return (torch.xlogy(box_QK, box_QK) - box_QK * attention_QK.clamp(min=LEAST).log()).sum()

    def metrics(self, ctx: Ctx) -> dict[str, Metric]:
        attention_QK, box_QK = self._both(ctx)
        key_QK = ctx.batch.gathers[self.needs[0]].key_QK
        assert key_QK is not None, "packing sets it for `AttnTo`"
        inside_QK = (box_QK > 0).float()
        uniform_Q = inside_QK.sum(-1) / (key_QK >= 0).sum(-1)
        return {
            "inside": Metric((attention_QK * inside_QK).sum(), uniform_Q.sum()),
            "with_box": Metric(inside_QK.amax(-1).sum(), 0.0),
        }

    def _both(self, ctx: Ctx) -> tuple[Tensor, Tensor]:
        """Returns the attention of each token over the rows of images, and the box there."""
        (need,) = self.needs
        attention_QK = ctx[need]
        patches_QP = ctx.label("box")[ctx.batch.gathers[need].view_Q]
        if attention_QK.shape[1] < patches_QP.shape[1]:
            raise ValueError(
                "an image has fewer rows than patches: use `mlp2x_gelu` or `linear`, without a reducer"
            )
        box_QK = torch.zeros_like(attention_QK)
        box_QK[:, : patches_QP.shape[1]] = patches_QP
        return attention_QK / attention_QK.sum(-1, keepdim=True).clamp(min=LEAST), box_QK


@hookimpl
def lmmkit_components():
    return {"attention_box": AttentionBox}
