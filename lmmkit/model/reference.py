"""The model that log-probabilities are compared with. It shares all modules that a stage does not train."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lmmkit import plugin_calls
from lmmkit.api.batch import Batch
from lmmkit.api.needs import Need
from lmmkit.model.cross_entropy import log_probs
from lmmkit.model.transforms import lora
from lmmkit.model.vlm import LMM, ImageFeatures


class Reference(nn.Module):
    """Holds the modules that only the reference has (`own`), and calls them together with the shared ones.

    `lmm` and `tokens` (the modules of learned tokens, by plugin) contain both. They are kept in a tuple, so that the
    shared modules do not become parts of this module.
    """

    def __init__(self, own: nn.ModuleDict, lmm: LMM, tokens: Mapping[str, nn.Module]):
        super().__init__()
        self.own = own.eval().requires_grad_(False)
        self._used = lmm, tokens

    @torch.no_grad()
    def forward(self, batch: Batch, encoded: ImageFeatures | None) -> dict[Need, Tensor]:
        """Returns the log-probabilities that needs read from the reference, without dropout or updates.

        `encoded`: the output of the trained model's encoder, which the reference shares if it has none of its own.
        """
        assert batch.reference is not None
        (lmm, tokens), head = self._used, batch.reference
        encoded = None if lmm.vision in self.own.values() or encoded is None else encoded.detach()
        weight_VD = lmm.decoder.head.weight
        width = weight_VD.shape[1]
        rows = {
            each.source: plugin_calls.tokens(each.instance, tokens[each.instance], width)
            for each in batch.scatters
            if each.instance
        }
        with lora.updates_off(lmm.decoder):
            out = lmm(batch.reading(()), rows, encoded)
        logp_P, _ = log_probs(out.at(head.row_R), weight_VD, head.place_P, head.target_P)
        return {need: logp_P[item_Q] for need, item_Q in head.item_Q.items()}
