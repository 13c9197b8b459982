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
from lmmkit.model.vision import TimmViT, ViT


class Seen(NamedTuple):
    """Holds the encoder's output for images of one size, [I, N, D], and for the patches of all others, [R, D], in
    vision width; None without such images."""

    sized_IND: Tensor | None = None
    native_RD: Tensor | None = None

    def detach(self) -> Seen:
        """Returns the same output without its graph."""
        return Seen(*(None if x is None else x.detach() for x in self))


class ModelOutput(NamedTuple):
    """Holds the states after the final norm of rows `row_W` (ascending), the attention mass of rows `row_R`
    in each layer, the states of the rows `batch.inner` between blocks, the weights on chosen keys by need, the
    encoder's output for the images of one size, and by stage the features of all image rows that some need reads."""

    row_W: Tensor
    hidden_WD: Tensor
    mass_LR: Tensor
    inner: Mapping[int, Tensor]
    maps: Mapping[Hashable, Tensor]
    seen_IND: Tensor | None = None
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

    def forward(self, batch: Batch, tokens: Mapping[str, Tensor], seen: Seen | None = None) -> ModelOutput:
        """Runs one packed pass; the last layer outputs only the rows that are read.

        Args:
            batch: on the model's device.
            tokens: learned tokens [n, D] by scatter source ("plugins.<instance>").
            seen: the output of `see`, if the caller has it already.
        """
        seen_IND, native_RD = self.see(batch) if seen is None else seen
        shown = any(scatter.source == "vision" for scatter in batch.scatters)
        projected_IND = self.project(seen_IND) if shown else None
        x_TD = self.rows(batch, projected_IND, tokens, native_RD)
        attention_fns = self.attention_fns(batch.attention, batch.last, x_TD.device)
        out = self.decode(x_TD, batch.forest.pos_T, attention_fns, batch.inner)
        stages = {need.stage for need in batch.gathers if isinstance(need, VisionAt)}
        features = {stage: self._features(stage, seen_IND, projected_IND) for stage in stages}
        return out._replace(seen_IND=seen_IND, features=features)

    def _features(self, stage: str, seen_IND: Tensor | None, projected_IND: Tensor | None) -> Tensor:
        """Returns the features of all image rows, [rows, width]; none for a batch without images."""
        if seen_IND is None or projected_IND is None:
            encoder, shape = cast(ViT | TimmViT, self.vision), self.decoder.shape
            width = encoder.image.width if stage == "encoder" else shape.width
            return self.decoder.norm.weight.new_empty(0, width)
        seen = (
            self.image_rows.seen(seen_IND, cast(Connector, self.connector))
            if stage == "encoder"
            else projected_IND
        )
        return seen.flatten(0, 1)

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

    def see(self, batch: Batch) -> Seen:
        """Returns the encoder's output for all images of a batch, from one pass.

        Ranks that an encoder is sharded over must run it equally often, also if they have unlike kinds of images.
        """
        if batch.patches is None:
            return Seen(self.encode(batch.pixels_ICXY))
        dtype, sized = self.decoder.norm.weight.dtype, len(batch.pixels_ICXY)
        images = batch.patches.after(batch.pixels_ICXY)
        images = Patches(images.patch_RF.to(dtype), images.grids)
        seen_RD = cast(ViT | TimmViT, self.vision).packed(images)
        split = sum(images.lengths[:sized])
        return Seen(seen_RD[:split].unflatten(0, (sized, -1)) if sized else None, seen_RD[split:])

    def encode(self, pixels_ICXY: Tensor) -> Tensor | None:
        """Returns [I, N, D] in vision width; None without images."""
        if not len(pixels_ICXY):
            return None
        x_IND = self.vision(pixels_ICXY.to(self.decoder.norm.weight.dtype))  # the dtype of the activations
        return x_IND.contiguous()  # on a view without the class token the connector would run many products

    def project(self, seen_IND: Tensor | None) -> Tensor | None:
        """Returns the rows of the images from the encoder's output; None without images."""
        return (
            None if seen_IND is None else self.image_rows.project(seen_IND, cast(Connector, self.connector))
        )

    def rows(
        self,
        batch: Batch,
        projected_IND: Tensor | None,
        tokens: Mapping[str, Tensor],
        native_RD: Tensor | None = None,
    ) -> Tensor:
        """Returns row vectors [T, D]: token embeddings, then each scatter into its rows. `projected_IND`: what
        the connector makes of the images of one size; `native_RD`: the encoder's output for all others, of which each
        patch is a row. None if there are none."""
        x_TD = self.decoder.embed(batch.id_T.clamp(min=0))
        sources = {**self.image_rows.learned(self.connector), **tokens}
        if projected_IND is not None:
            sources["vision"] = projected_IND.flatten(0, 1)
        if native_RD is not None:
            sources["native"] = self.connector(native_RD[None])[0]
        for scatter in batch.scatters:
            x_TD = x_TD.index_copy(0, scatter.row_N, sources[scatter.source][scatter.item_N].to(x_TD))
        return x_TD

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Returns the logits [S, V] in float32 or wider."""
        logits_SV = self.decoder.head(hidden_SD)
        return logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32))
