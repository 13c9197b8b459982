"""The KV cache: one path of rows per leaf, padded on the left, with space for new tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lmmkit.attention.interface import ALL, AttentionFn, Heads, Rotary, apply_rope, apply_rope_


class LayerCache:
    """Holds keys and values of one layer for Q sequences that grow together, [Q, G, M + max_new_tokens, K].

    `recording` fills it from the packed prompts; `decoding` comes after it. A prefix that several
    sequences share is copied to each, so that decoding reads contiguous memory.
    """

    k_QGMK: Tensor
    v_QGMK: Tensor

    def __init__(self, key_QM: Tensor, max_new_tokens: int):
        self.key_QM, self.max_new_tokens = key_QM, max_new_tokens

    def recording(self, attention_fn: AttentionFn) -> AttentionFn:
        """Wraps `attention_fn` so that it also stores the keys and values of all sequences."""

        def attend_and_keep(qkv_TC: Tensor, heads: Heads, rotary: Rotary) -> tuple[Tensor, ...]:
            _, k_TGK, v_TGK = apply_rope(qkv_TC, heads, rotary)
            self.k_QGMK, self.v_QGMK = self._spread(k_TGK), self._spread(v_TGK)
            return attention_fn(qkv_TC, heads, rotary)

        return AttentionFn(attention_fn.rows, attend_and_keep)

    def _spread(self, x_TGK: Tensor) -> Tensor:
        (Q, M), (_, G, K) = self.key_QM.shape, x_TGK.shape
        x_QGMK = x_TGK.new_empty(Q, G, M + self.max_new_tokens, K)
        x_QGMK[:, :, :M] = x_TGK[self.key_QM].transpose(1, 2)
        return x_QGMK

    def decoding(self, at: int, mask_Q11M: Tensor | None) -> AttentionFn:
        """Returns the attention of one new row per sequence, stored at index `at`, onto all rows up to it.

        `mask_Q11M` masks the padding; None if there is none.
        """

        def attention_fn(qkv_QC: Tensor, heads: Heads, rotary: Rotary) -> tuple[Tensor, Tensor]:
            apply_rope_(heads.queries_and_keys(qkv_QC), *rotary)
            q_QHK, k_QGK, v_QGK = heads.split(qkv_QC)
            self.k_QGMK[:, :, at], self.v_QGMK[:, :, at] = k_QGK, v_QGK
            k_QGMK, v_QGMK = self.k_QGMK[:, :, : at + 1], self.v_QGMK[:, :, : at + 1]
            # the query heads of one key head become rows of one call, so keys are not repeated
            q_QGRK = q_QHK.unflatten(1, (heads.kv, -1))
            out_QGRK = F.scaled_dot_product_attention(q_QGRK, k_QGMK, v_QGMK, mask_Q11M)
            return out_QGRK.flatten(1), q_QHK.new_empty(0)

        return AttentionFn(ALL, attention_fn)
