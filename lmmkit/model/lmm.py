"""The large multimodal model: see, project, fill the rows that are not text, decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lmmkit.batch import Batch, Fill
from lmmkit.model.attention import Attend, Backend
from lmmkit.model.decoder import Decoder


class Output(NamedTuple):
    """States after the final norm of rows `row_W`, ascending, and each layer's attention mass of the
    asked rows."""

    row_W: Tensor
    hidden_WD: Tensor
    mass_LR: Tensor

    def at(self, row_Q: Tensor) -> Tensor:
        """[Q, D]: the states of these rows."""
        return self.hidden_WD[torch.searchsorted(self.row_W, row_Q)]


class Connector(nn.Module):
    """Vision width to decoder width: one linear, or LLaVA-1.5's two with an exact GELU between."""

    def __init__(self, kind: Literal["linear", "mlp2x_gelu"], n_in: int, n_out: int):
        super().__init__()
        self.first = nn.Linear(n_in, n_out)
        self.second = (
            nn.Sequential(nn.GELU(), nn.Linear(n_out, n_out)) if kind == "mlp2x_gelu" else nn.Identity()
        )

    def forward(self, x_IND: Tensor) -> Tensor:
        return self.second(self.first(x_IND))


class LMM(nn.Module):
    """A vision encoder, a connector and a decoder; of text alone, the first two are identities."""

    def __init__(self, vision: nn.Module, connector: nn.Module, decoder: Decoder, backend: Backend):
        super().__init__()
        self.vision, self.connector, self.decoder = vision, connector, decoder
        self.backend = backend

    def forward(
        self, batch: Batch, tokens: Mapping[str, Tensor], row_R: Tensor, read_T: Tensor | None = None
    ) -> Output:
        """One packed pass; the last layer only for the rows that are read.

        Args:
            batch: on the model's device.
            tokens: learned rows [n, D] by fill source ("plugins.<instance>").
            row_R: rows whose attention mass onto `batch.key_T` is wanted; unique, on the host.
            read_T: the rows whose states are wanted, bool, on the host; all where None. Others may come.
        """
        x_TD = self.rows(batch.id_T, batch.fills, batch.pixels_ICXY, tokens)
        attends = self.attends(batch, row_R, read_T, x_TD.device)
        return self.decode(x_TD, batch.forest.pos_T, attends)

    def attends(
        self, batch: Batch, row_R: Tensor, read_T: Tensor | None, device: torch.device
    ) -> list[Attend]:
        """One plan for all layers but the last, whose queries are the rows that are read."""
        every, last = (
            self.backend.attend(batch.forest, batch.key_T, row_R, device, read) for read in (None, read_T)
        )
        return [every] * (len(self.decoder.blocks) - 1) + [last]

    def decode(self, x_TD: Tensor, pos_T: Tensor, attends: Sequence[Attend]) -> Output:
        """The decoder over rows that are already vectors, one `attend` a layer."""
        row_W = torch.arange(len(x_TD), device=x_TD.device)[attends[-1].rows]
        return Output(row_W, *self.decoder(x_TD, pos_T.to(x_TD.device), attends))

    def rows(
        self, id_T: Tensor, fills: Sequence[Fill], pixels_ICXY: Tensor, tokens: Mapping[str, Tensor]
    ) -> Tensor:
        """Row vectors [T, D]: token embeddings, then every fill over the rows it owns."""
        x_TD = self.decoder.embed(id_T.clamp(min=0))
        for fill in fills:
            source = self.see(pixels_ICXY) if fill.source == "vision" else tokens[fill.source]
            x_TD = x_TD.index_copy(0, fill.row_N, source[fill.item_N].to(x_TD))
        return x_TD

    def see(self, pixels_ICXY: Tensor) -> Tensor:
        """[I * N, D]: image tokens in decoder width, image by image."""
        pixels_ICXY = pixels_ICXY.to(self.decoder.norm.weight.dtype)  # as wide as what flows
        return self.connector(self.vision(pixels_ICXY)).flatten(0, 1)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """[S, V] in float32 or wider."""
        logits_SV = self.decoder.head(hidden_SD)
        return logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32))
