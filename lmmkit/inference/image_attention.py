"""The attention from the rows of a response to the rows of its images, by layer-wise attention maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from lmmkit.attention.eager import attention_map
from lmmkit.attention.interface import ALL, AttentionFn, Heads, Rotary, apply_rope
from lmmkit.data.packing import Packer, PixelRef, SizedSample
from lmmkit.model.connectors.connector import Connector
from lmmkit.objective import Objective


@dataclass(frozen=True)
class ImageAttention:
    """Holds the attention of a response, averaged over heads, layers and response rows, and that of the row before it,
    which decides on the first token of the response.

    `map_XY`: to each patch of the first image; None if rows are made of no fixed patches. `mass`: to all image rows,
    in [0, 1]. `even`: the mass if each row attended evenly to all rows that it may attend to. `deciding`: the same of
    the deciding row alone, which attends to `deciding.rows` rows. `pixels_CXY`: the first image, preprocessed.
    """

    map_XY: Tensor | None
    mass: float
    even: float
    deciding: DecidingRow
    pixels_CXY: Tensor


@dataclass(frozen=True)
class DecidingRow:
    """Holds the attention of the row that decides on the first token of a response, averaged over heads and layers."""

    map_XY: Tensor | None
    mass: float
    even: float
    rows: int


@torch.no_grad()
def image_attention(
    objective: Objective, packer: Packer, sample: SizedSample, images: Mapping[PixelRef, Tensor], device: torch.device
) -> ImageAttention:  # fmt: skip
    """Returns the attention from the supervised rows of a sample's first view to its images."""
    layout, lmm = sample.members[0].layout, objective.lmm
    batch, (path,) = packer.without_terms().pack([sample], images)
    is_image = np.repeat([s.kind == "image" for s in layout], [s.n for s in layout])
    position_R = np.flatnonzero(np.repeat([s.supervised for s in layout], [s.n for s in layout]))
    n = next(span.n for span in layout if span.kind == "image")
    before = position_R[0] - 1
    image_row, row_R = path[np.flatnonzero(is_image)], path[np.append(position_R, before)]
    batch = batch.to(device)
    see_RT = batch.forest.see()[row_R].to(device)
    maps: list[Tensor] = []
    attend = lmm.backend.prepare(replace(batch.attention, row_R=batch.attention.row_R[:0]), device)

    def recording(qkv_TC: Tensor, heads: Heads, rotary: Rotary) -> tuple[Tensor, ...]:
        q_THK, k_TGK, _ = apply_rope(qkv_TC, heads, rotary)
        maps.append(attention_map(q_THK[row_R], k_TGK, see_RT)[..., image_row].mean(0))
        return attend(qkv_TC, heads, rotary)

    with objective.computing(device):
        x_TD = lmm.rows(batch, lmm.project(lmm.encode(batch.pixels_ICXY)), objective.tokens(batch))
        lmm.decode(x_TD, batch.forest.pos_T, [AttentionFn(ALL, recording)] * len(lmm.decoder.blocks))
    weight_RN = torch.stack(maps).mean(0)
    weight_N, deciding_N = weight_RN[:-1].mean(0), weight_RN[-1]
    even_S = np.cumsum(is_image) / np.arange(1, len(is_image) + 1)  # S: positions
    map_XY, deciding_XY = (
        lmm.image_rows.on_patches(w[:n], cast(Connector, lmm.connector)) for w in (weight_N, deciding_N)
    )
    deciding = DecidingRow(deciding_XY, float(deciding_N.sum()), float(even_S[before]), int(before) + 1)
    return ImageAttention(
        map_XY, float(weight_N.sum()), float(even_S[position_R].mean()), deciding, batch.first_image(0)
    )
