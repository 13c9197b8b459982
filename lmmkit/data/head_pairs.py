"""Lists what a micro-batch asks of the head, if terms read log-probabilities: distinct rows and targets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lmmkit.api.batch import HeadPairs, RowGather
from lmmkit.api.needs import LogProb, LogSumExp, Need


def head_pairs(
    predict: RowGather, target_S: Tensor, gathers: Mapping[Need, RowGather], model: str = "policy"
) -> HeadPairs | None:
    """Returns the pairs that one model computes; None if no term reads log-probabilities of it.

    The trained model ("policy") also computes the pairs of the text terms, from `predict` and `target_S`.
    """
    asked = {need: gather for need, gather in gathers.items() if _of(need) == model}
    if not asked:
        return None
    text = [(predict.row_Q, target_S)] if model == "policy" else []
    parts = [*text, *((gather.row_Q, gather.target_Q) for gather in asked.values())]
    row_N, target_N = (np.concatenate([part[i].numpy() for part in parts]) for i in (0, 1))
    row_R, place_N = np.unique(row_N, return_inverse=True)
    base = target_N.max(initial=0) + 1
    code_P, pair_N = np.unique(place_N * base + target_N, return_inverse=True)
    ends = np.cumsum([len(part[0]) for part in parts])[:-1]
    pairs, places = np.split(pair_N, ends), np.split(place_N, ends)
    items = {
        need: torch.from_numpy(place_Q if isinstance(need, LogSumExp) else pair_Q)
        for need, pair_Q, place_Q in zip(asked, pairs[len(text) :], places[len(text) :], strict=True)
    }
    pair_S = torch.from_numpy(pairs[0]) if text else target_S[:0]
    place_P, target_P = (torch.from_numpy(part) for part in divmod(code_P, base))
    return HeadPairs(torch.from_numpy(row_R), place_P, target_P, pair_S, items)


def _of(need: Need) -> str:
    """Returns the model whose log-probabilities a need reads; "" if it reads none."""
    if isinstance(need, LogProb):
        return need.model
    return "policy" if isinstance(need, LogSumExp) else ""
