"""The KV cache: rows of the forest that are remembered, and rows reserved for what is to come."""

from __future__ import annotations

import torch
from torch import Tensor

from lmmkit.model.attention import Attend, gathered


class LayerCache:
    """Keys and values of one layer for T rows, [T, G, K]; rows are written once.

    `recording` makes them; `decoding` comes after it.
    """

    k_TGK: Tensor
    v_TGK: Tensor

    def __init__(self, rows: int):
        self.rows = rows

    def recording(self, attend: Attend, rows: int) -> Attend:
        """`attend`, remembering the keys and values of rows 0 to `rows` on the way."""

        def attend_and_keep(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> tuple[Tensor, Tensor]:
            self.k_TGK = k_TGK.new_zeros(self.rows, *k_TGK.shape[1:])
            self.v_TGK = v_TGK.new_zeros(self.rows, *v_TGK.shape[1:])
            self.k_TGK[:rows], self.v_TGK[:rows] = k_TGK, v_TGK
            return attend(q_THK, k_TGK, v_TGK)

        return attend_and_keep

    def decoding(self, row_Q: Tensor, key_QM: Tensor, seen_QM: Tensor) -> Attend:
        """Attention of the new rows `row_Q` onto the remembered rows `key_QM` that they see."""

        def attend(q_QHK: Tensor, k_QGK: Tensor, v_QGK: Tensor) -> tuple[Tensor, Tensor]:
            self.k_TGK[row_Q], self.v_TGK[row_Q] = k_QGK, v_QGK
            out_QHK = gathered(q_QHK, self.k_TGK, self.v_TGK, key_QM, seen_QM)
            return out_QHK, torch.empty(0, device=q_QHK.device)

        return attend
