"""The attention from the rows of a response to the rows of its images, by layer-wise attention maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lmmkit.attention.eager import attention_map
from lmmkit.attention.interface import ALL, AttentionFn, Heads, Rotary, apply_rope
from lmmkit.data.packing import ImageRef, Packer, SizedSample
from lmmkit.objective import Objective


@dataclass(frozen=True)
class ImageAttention:
    """Holds the attention of a response, averaged over heads, layers and response rows.

    `map_XY`: to each patch of the first image; None if a reducer chose among them. `mass`: to all image rows, in
    [0, 1]. `even`: the mass if each row attended evenly to all rows that it may attend to. `pixels_CXY`: the first
    image, preprocessed.
    """

    map_XY: Tensor | None
    mass: float
    even: float
    pixels_CXY: Tensor


@torch.no_grad()
def image_attention(
    objective: Objective, packer: Packer, sample: SizedSample, images: Mapping[ImageRef, Tensor], device: torch.device
) -> ImageAttention:  # fmt: skip
    """Returns the attention from the supervised rows of a sample's first view to its images."""
    layout, lmm = sample.members[0].layout, objective.lmm
    batch, (path,) = packer.without_terms().pack([sample], images)
    is_image = np.repeat([s.kind == "image" for s in layout], [s.n for s in layout])
    position_R = np.flatnonzero(np.repeat([s.supervised for s in layout], [s.n for s in layout]))
    n = next(span.n for span in layout if span.kind == "image")
    image_row, row_R = path[np.flatnonzero(is_image)], path[position_R]
    batch = batch.to(device)
    see_RT = batch.forest.see()[row_R].to(device)
    maps: list[Tensor] = []
    attend = lmm.backend.prepare(replace(batch.attention, row_R=batch.attention.row_R[:0]), device)

    def recording(qkv_TC: Tensor, heads: Heads, rotary: Rotary) -> tuple[Tensor, ...]:
        q_THK, k_TGK, _ = apply_rope(qkv_TC, heads, rotary)
        maps.append(attention_map(q_THK[row_R], k_TGK, see_RT)[..., image_row].mean((0, 1)))
        return attend(qkv_TC, heads, rotary)

    with objective.computing(device):
        x_TD = lmm.rows(batch, lmm.project(lmm.encode(batch.pixels_ICXY)), objective.tokens(batch))
        lmm.decode(x_TD, batch.forest.pos_T, [AttentionFn(ALL, recording)] * len(lmm.decoder.blocks))
    weight_N = torch.stack(maps).mean(0)
    even = (np.cumsum(is_image)[position_R] / (position_R + 1)).mean()
    map_XY = lmm.image_rows.on_patches(weight_N[:n], packer.image.grid)
    return ImageAttention(map_XY, float(weight_N.sum()), float(even), batch.first_image(0))
