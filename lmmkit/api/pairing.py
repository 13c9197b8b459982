"""Sums values by view or by sample, and places them beside others. All indices are made on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lmmkit.api.batch import Batch
from lmmkit.api.needs import Need

Reduce = Literal["sum", "mean"]


def by_view(batch: Batch, need: Need, x_Q: Tensor, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Returns the sum or mean of the values of each view that has any, and the numbers of these views."""
    view_N, group_Q = np.unique(batch.item_views(need), return_inverse=True)
    return _reduced(x_Q, group_Q, len(view_N), reduce), _to(view_N, x_Q)


def by_sample(
    batch: Batch, needs: Sequence[Need], values: Sequence[Tensor], reduce: Reduce
) -> tuple[Tensor, ...]:
    """Returns the sums or means of several needs, of the samples that have values of all of them, row for row."""
    samples = [batch.item_samples(need) for need in needs]
    common = np.array(sorted(set.intersection(*(set(each.tolist()) for each in samples))), np.int64)
    found = []
    for x_Q, sample_Q in zip(values, samples, strict=True):
        kept = np.flatnonzero(np.isin(sample_Q, common))
        group_K = np.searchsorted(common, sample_Q[kept])
        x_K = x_Q if len(kept) == len(x_Q) else x_Q[_to(kept, x_Q)]
        found.append(_reduced(x_K, group_K, len(common), reduce))
    return tuple(found)


def beside(batch: Batch, need: Need, like: Need, x_Q: Tensor, fill: float) -> Tensor:
    """Returns for each item of `like` the value of `need` at the same place in the same sample, or `fill`.

    The place is the number of the item in its view; of several views with `need` the sample's first counts.
    """
    first: dict[int, int] = {}
    at: dict[tuple[int, int], int] = {}
    for i, (view, sample, number) in enumerate(_places(batch, need)):
        if first.setdefault(sample, view) == view:
            at[sample, number] = i
    index = np.array(
        [at.get((sample, number), len(x_Q)) for _, sample, number in _places(batch, like)], np.int64
    )
    return torch.cat([x_Q, x_Q.new_full((1, *x_Q.shape[1:]), fill)])[_to(index, x_Q)]


def _places(batch: Batch, need: Need) -> list[tuple[int, int, int]]:
    """Returns (view, sample, number in the view) of each item; the items of a view are consecutive."""
    view_Q, sample_Q = batch.item_views(need), batch.item_samples(need)
    number_Q = np.arange(len(view_Q)) - np.searchsorted(view_Q, view_Q)
    return list(zip(view_Q.tolist(), sample_Q.tolist(), number_Q.tolist(), strict=True))


def _reduced(x_Q: Tensor, group_Q: np.ndarray, groups: int, reduce: Reduce) -> Tensor:
    if reduce not in ("sum", "mean"):
        raise ValueError(f"`reduce` is `sum` or `mean`, not `{reduce}`")
    sums = x_Q.new_zeros(groups, *x_Q.shape[1:]).index_add(0, _to(group_Q, x_Q), x_Q)
    if reduce == "sum":
        return sums
    size_G = _to(np.bincount(group_Q, minlength=groups), x_Q).to(x_Q.dtype)
    return sums / size_G.view(-1, *[1] * (x_Q.ndim - 1))


def _to(index: np.ndarray, x_Q: Tensor) -> Tensor:
    return torch.from_numpy(index).to(x_Q.device, non_blocking=True)
