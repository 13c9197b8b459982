"""The large multimodal model: encode images, project, scatter into the rows that are not text, decode."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from lmmkit.api.batch import Batch, Patches
from lmmkit.api.needs import VisionAt
from lmmkit.attention.backends import Backend
from lmmkit.attention.interface import AttentionFn
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.model.connectors.connector import Connector
from lmmkit.model.decoder import NOTHING, Decoder
from lmmkit.model.image_rows import ImageRows
from lmmkit.model.timm_vit import TimmViT
from lmmkit.model.vision import ViT


class ImageFeatures(NamedTuple):
    """Holds what the encoder, or then the connector, gives for images of one size, [I, N, D], and for all others,
    [R, D]; None without such images. `grids`: the lines and columns of patches of each of the others."""

    sized_IND: Tensor | None = None
    native_RD: Tensor | None = None
    grids: tuple[tuple[int, int], ...] = ()

    def detach(self) -> ImageFeatures:
        """Returns the same features without their graph."""
        sized_IND, native_RD = (None if x is None else x.detach() for x in (self.sized_IND, self.native_RD))
        return ImageFeatures(sized_IND, native_RD, self.grids)


class ModelOutput(NamedTuple):
    """Holds the states after the final norm of rows `row_W` (ascending), the attention mass of rows `row_R`
    in each layer, the states of the rows `batch.inner` between blocks, the weights on chosen keys by need, the
    encoder's output, and by stage the features of all image rows that some need reads."""

    row_W: Tensor
    hidden_WD: Tensor
    mass_LR: Tensor
    inner: Mapping[int, Tensor]
    maps: Mapping[Hashable, Tensor]
    encoded: ImageFeatures = ImageFeatures()
    features: Mapping[str, Tensor] = NOTHING

    def at(self, row_Q: Tensor) -> Tensor:
        """Returns the states of these rows after the final norm, [Q, D]."""
        return self.hidden_WD[torch.searchsorted(self.row_W, row_Q)]


class LMM(nn.Module):
    """Holds a vision encoder, a connector and a decoder. In text-only models the first two are identities."""

    def __init__(self, vision: nn.Module, connector: nn.Module, decoder: Decoder, backend: Backend):
        super().__init__()
        self.vision, self.connector, self.decoder = vision, connector, decoder
        self.backend, self.image_rows = backend, ImageRows()

    def forward(
        self, batch: Batch, tokens: Mapping[str, Tensor], encoded: ImageFeatures | None = None
    ) -> ModelOutput:
        """Runs one packed pass; the last layer outputs only the rows that are read.

        Args:
            batch: on the model's device.
            tokens: learned tokens [n, D] by scatter source ("plugins.<instance>").
            encoded: the output of `encode`, if the caller has it already.
        """
        encoded = self.encode(batch) if encoded is None else encoded
        shown = any(scatter.source == "vision" for scatter in batch.scatters)
        projected = self.project(encoded if shown else encoded._replace(sized_IND=None))
        x_TD = self.rows(batch, projected, tokens)
        attention_fns = self.attention_fns(batch.attention, batch.last, x_TD.device)
        out = self.decode(x_TD, batch.forest.pos_T, attention_fns, batch.inner)
        stages = {need.stage for need in batch.gathers if isinstance(need, VisionAt)}
        features = {stage: self._features(stage, encoded.sized_IND, projected.sized_IND) for stage in stages}
        return out._replace(encoded=encoded, features=features)

    def _features(self, stage: str, encoded_IND: Tensor | None, projected_IND: Tensor | None) -> Tensor:
        """Returns the features of all image rows, [rows, width]; none for a batch without images."""
        if encoded_IND is None or projected_IND is None:
            encoder, shape = cast(ViT | TimmViT, self.vision), self.decoder.shape
            width = encoder.image.width if stage == "encoder" else shape.width
            return self.decoder.norm.weight.new_empty(0, width)
        if stage != "encoder":
            return projected_IND.flatten(0, 1)
        return self.image_rows.row_features(encoded_IND, cast(Connector, self.connector)).flatten(0, 1)

    def attention_fns(
        self, spec: AttentionSpec, last: AttentionSpec, device: torch.device
    ) -> list[AttentionFn]:
        """Returns the attention function of each layer; all layers but the last share one."""
        every = self.backend.prepare(spec, device)
        fns = [every] * (len(self.decoder.blocks) - 1) + [
            every if last is spec else self.backend.prepare(last, device)
        ]
        return [each.of_layer(n) for n, each in enumerate(fns)]

    def decode(
        self,
        x_TD: Tensor,
        pos_T: Tensor,
        attention_fns: Sequence[AttentionFn],
        inner: Mapping[int, Tensor] = NOTHING,
    ) -> ModelOutput:
        """Runs the decoder on row vectors, with one attention function per layer. `inner`: the rows to read
        between blocks."""
        row_W = torch.arange(len(x_TD), device=x_TD.device)[attention_fns[-1].rows]
        pos_T = pos_T.to(x_TD.device, non_blocking=True)
        return ModelOutput(row_W, *self.decoder(x_TD, pos_T, attention_fns, inner))

    def encode(self, batch: Batch) -> ImageFeatures:
        """Returns the encoder's output for all images of a batch, from one pass.

        Ranks that an encoder is sharded over must run it equally often, also if they have unlike kinds of images.
        """
        if batch.patches is None:
            return ImageFeatures(self.encode_sized(batch.pixels_ICXY))
        dtype, sized = self.decoder.norm.weight.dtype, len(batch.pixels_ICXY)
        images = batch.patches.after(batch.pixels_ICXY)
        images = Patches(images.patch_RF.to(dtype), images.grids)
        x_RD = cast(ViT | TimmViT, self.vision).packed(images)
        split = sum(images.lengths[:sized])
        sized_IND = x_RD[:split].unflatten(0, (sized, -1)) if sized else None
        return ImageFeatures(sized_IND, x_RD[split:], batch.patches.grids)

    def encode_sized(self, pixels_ICXY: Tensor) -> Tensor | None:
        """Returns the encoder's output for images of one size, [I, N, D]; None without images."""
        if not len(pixels_ICXY):
            return None
        x_IND = self.vision(pixels_ICXY.to(self.decoder.norm.weight.dtype))  # the dtype of the activations
        return x_IND.contiguous()  # on a view without the class token the connector would run many products

    def project(self, encoded: ImageFeatures) -> ImageFeatures:
        """Returns the rows of the images, in decoder width, from the encoder's output."""
        connector, (sized_IND, native_RD, grids) = cast(Connector, self.connector), encoded
        return ImageFeatures(
            None if sized_IND is None else self.image_rows.project(sized_IND, connector),
            None if native_RD is None else connector.packed(native_RD, grids),
        )

    def rows(self, batch: Batch, projected: ImageFeatures, tokens: Mapping[str, Tensor]) -> Tensor:
        """Returns row vectors [T, D]: token embeddings, then each scatter into its rows."""
        x_TD = self.decoder.embed(batch.id_T.clamp(min=0))
        sources = {**self.image_rows.learned(self.connector), **tokens}
        if projected.sized_IND is not None:
            sources["vision"] = projected.sized_IND.flatten(0, 1)
        if projected.native_RD is not None:
            sources["native"] = projected.native_RD
        for scatter in batch.scatters:
            x_TD = x_TD.index_copy(0, scatter.row_N, sources[scatter.source][scatter.item_N].to(x_TD))
        return x_TD

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Returns the logits [S, V] in float32 or wider."""
        logits_SV = self.decoder.head(hidden_SD)
        return logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32))
