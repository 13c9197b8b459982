"""The attention from the rows of a response to the rows of its images, by layer-wise attention maps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from lmmkit.api.layout import Layout
from lmmkit.api.sample import AnyRes, Image, Native, Sample, View
from lmmkit.attention.eager import attention_map
from lmmkit.attention.interface import ALL, AttentionFn, Heads, Rotary, apply_rope
from lmmkit.data.fits.rows import grid_of
from lmmkit.data.images import PixelRef
from lmmkit.data.micro_batch.laid_out import LaidOut, SizedSample
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.data.packing import Packer
from lmmkit.inference.chat_model import ChatModel
from lmmkit.model.connectors.connector import Connector
from lmmkit.objective import Objective


@dataclass(frozen=True)
class ImageAttention:
    """Holds the attention of a response, averaged over heads, layers and response rows, and that of the row before it,
    which decides on the first token of the response.

    `mass`: to all image rows, in [0, 1]. `even`: the mass if each row attended evenly to all rows that it may attend
    to. `images`: the same for each image. `deciding`: the same of the deciding row alone, which attends to
    `deciding.rows` rows. `pixels_CXY`: the first image, preprocessed.
    """

    mass: float
    even: float
    images: tuple[OnImage, ...]
    deciding: DecidingRow
    pixels_CXY: Tensor

    @property
    def map_XY(self) -> Tensor | None:
        """Returns the attention to each patch of the first image, or of its overview; None if its rows are made of no
        fixed patches."""
        return self.images[0].map_XY


@dataclass(frozen=True)
class OnImage:
    """Holds the attention of a response to one image; `map_XY`: to each of its patches, None as above."""

    map_XY: Tensor | None
    mass: float
    even: float


@dataclass(frozen=True)
class DecidingRow:
    """Holds the attention of the row that decides on the first token of a response, averaged over heads and layers.
    `map_XY`: to each patch of the first image."""

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
    number_S = _image_numbers(layout)  # S: positions
    is_image = number_S >= 0
    position_R = np.flatnonzero(np.repeat([s.supervised for s in layout], [s.n for s in layout]))
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
        x_TD = lmm.rows(batch, lmm.project(lmm.encode(batch)), objective.tokens(batch))
        lmm.decode(x_TD, batch.forest.pos_T, [AttentionFn(ALL, recording)] * len(lmm.decoder.blocks))
    weight_RN = torch.stack(maps).mean(0)
    weight_N, deciding_N = weight_RN[:-1].mean(0), weight_RN[-1]
    count_S = np.arange(1, len(number_S) + 1)
    even_S = np.cumsum(is_image) / count_S
    fit = sample.members[0].view.sample.image_fit
    shown = [span.image for span in layout if span.image is not None]

    def on_patches(weight_N: Tensor, image: Image) -> Tensor | None:
        connector = cast(Connector, lmm.connector)
        if isinstance(fit, Native):
            return connector.on_patches(weight_N, grid_of(image, fit, packer.image))
        if isinstance(fit, AnyRes):
            weight_N = weight_N[: math.prod(packer.image.row_grid)]  # of the overview
        return lmm.image_rows.on_patches(weight_N, connector)

    each_IN = weight_N.split(np.bincount(number_S[is_image]).tolist())
    evens_I = [float((np.cumsum(number_S == i) / count_S)[position_R].mean()) for i in range(len(shown))]
    on_images = tuple(
        OnImage(on_patches(weight_n, image), float(weight_n.sum()), even)
        for weight_n, image, even in zip(each_IN, shown, evens_I, strict=True)
    )
    first_N = deciding_N[: len(each_IN[0])]
    deciding = DecidingRow(
        on_patches(first_N, shown[0]), float(deciding_N.sum()), float(even_S[before]), int(before) + 1
    )
    mass, even = float(weight_N.sum()), float(even_S[position_R].mean())
    return ImageAttention(mass, even, on_images, deciding, batch.first_image(0))


def _image_numbers(layout: Layout) -> np.ndarray:
    """Returns for each position the number of its image in the layout; -1 for other rows."""
    images = iter(range(len(layout)))
    numbers = [next(images) if span.kind == "image" else -1 for span in layout]
    return np.repeat(numbers, [span.n for span in layout])


@torch.no_grad()
def answer_attention(chat_model: ChatModel, sample: Sample) -> ImageAttention:
    """Returns the attention of the supervised answers of a conversation with images, as `image_attention`."""
    view = View(sample=sample, supervision="train")
    laid_out = chat_model.packer.sized([LaidOut(view, chat_model.views.lay_out(view))])
    return image_attention(
        chat_model.objective, chat_model.packer, laid_out, read_images([laid_out], chat_model.reader),
        chat_model.device,
    )  # fmt: skip
