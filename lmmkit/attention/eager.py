"""The plain attention backend: a masked softmax with the complete attention map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmmkit.attention.interface import ALL, AttentionFn, Heads, Rotary, apply_rope, grouped, moved
from lmmkit.attention.key_maps import MapReader, map_readers, read_dense
from lmmkit.attention.schedule import AttentionSpec


@dataclass(frozen=True)
class Eager:
    """Computes a masked softmax with the complete map. Slow and simple: the reference for the others."""

    name: str = "eager"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str:
        return ""

    def prepare(self, spec: AttentionSpec, device: torch.device) -> AttentionFn:
        # the output rows of every backend, so that dropout behind them draws the same masks
        see, rows, row_W = spec.forest.see(), ALL, spec.row_W
        if row_W is not None:
            see, rows = see[row_W], moved(row_W, device)
        place_R = moved(spec.places(spec.row_R.numpy()), device)
        key_N = moved(np.flatnonzero(spec.key_T.numpy()), device)
        see_WT = see.to(device, non_blocking=True)

        def attention_from_parts(
            qkv_TC: Tensor, heads: Heads, rotary: Rotary, *maps: MapReader
        ) -> tuple[Tensor, ...]:
            q_THK, k_TGK, v_TGK = apply_rope(qkv_TC, heads, rotary)
            weight_HWT = attention_map(q_THK[rows], k_TGK, see_WT)
            out_WHK = torch.einsum("hqk,khd->qhd", weight_HWT.to(v_TGK), grouped(v_TGK, heads.q))
            mass_R = weight_HWT[:, place_R][..., key_N].sum(-1).mean(0)
            return out_WHK.flatten(1), mass_R, *(read_dense(each, weight_HWT) for each in maps)

        return AttentionFn(rows, attention_from_parts, map_readers(spec.maps, row_W, device))

    def dense(self, q_INHK: Tensor, k_INHK: Tensor, v_INHK: Tensor) -> Tensor:
        score = torch.einsum("iqhd,ikhd->ihqk", q_INHK, k_INHK) * q_INHK.shape[-1] ** -0.5
        return torch.einsum("ihqk,ikhd->iqhd", _softmax(score).to(v_INHK), v_INHK)


def attention_map(q_QHK: Tensor, k_TGK: Tensor, see_QT: Tensor) -> Tensor:
    """Returns the softmax weights [H, Q, T], float32 or wider: for images and reference code."""
    score = torch.einsum("qhd,khd->hqk", q_QHK, grouped(k_TGK, q_QHK.shape[1])) * q_QHK.shape[-1] ** -0.5
    return _softmax(score.masked_fill(~see_QT, -torch.inf))


def _softmax(score: Tensor) -> Tensor:
    return score.softmax(-1, dtype=torch.promote_types(score.dtype, torch.float32))
