"""Logits and generation from token ids, with the calls known from transformers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from lmmkit.inference.batch_from_ids import batch_of_ids
from lmmkit.inference.generate import generate
from lmmkit.model.vlm import LMM


@dataclass(frozen=True, kw_only=True)
class TokenModel:
    """Runs a model on token ids. `image_token` is the placeholder id for one row of an image, `image_rows`
    the number of rows of one image. The ids `eos` end an answer; `pad` follows an ended one."""

    lmm: LMM
    image_token: int | None
    image_rows: int
    eos: tuple[int, ...]
    pad: int

    @torch.no_grad()
    def logits(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Returns the next-token logits of each position, [B, T, V] float32 or wider; zeros where padded."""
        batch, paths = self._batch(input_ids, pixel_values, attention_mask)
        out = self.lmm(batch, {})
        rows = torch.cat([torch.from_numpy(path) for path in paths]).to(out.row_W.device)
        logits_NV = self.lmm.logits(out.at(rows))
        if attention_mask is None:
            return logits_NV.unflatten(0, input_ids.shape)
        out = logits_NV.new_zeros(*input_ids.shape, logits_NV.shape[-1])
        out[attention_mask.to(out.device) != 0] = logits_NV
        return out

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, *, max_new_tokens: int,
        attention_mask: Tensor | None = None, eos_token_id: int | Collection[int] | None = None,
    ) -> Tensor:  # fmt: skip
        """Returns the greedy tokens after each prompt up to the end token, then padding: [B, N] int64."""
        batch, paths = self._batch(input_ids, pixel_values, attention_mask)
        eos = self.eos if eos_token_id is None else eos_token_id
        ends = (eos,) if isinstance(eos, int) else tuple(eos)
        kept: list[Tensor] = []
        generate(
            self.lmm, batch, [int(path[-1]) for path in paths], tokens={}, max_new_tokens=max_new_tokens, eos=ends,
            on_token=lambda id_Q: kept.append(id_Q.cpu()),
        )  # fmt: skip
        id_BN = torch.stack(kept, 1)
        is_end = torch.isin(id_BN, torch.tensor(ends, dtype=torch.int64))
        ended = is_end.cumsum(1) - is_end.int() > 0
        return id_BN.masked_fill(ended, self.pad)

    def _batch(self, input_ids, pixel_values, attention_mask):
        batch, paths = batch_of_ids(
            input_ids, pixel_values, attention_mask, image_token=self.image_token,
            image_rows=self.image_rows, vocab=self.lmm.decoder.shape.vocab,
        )  # fmt: skip
        return batch.to(self.lmm.decoder.norm.weight.device), paths
