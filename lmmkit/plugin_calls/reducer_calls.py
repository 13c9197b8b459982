"""Calls into image reducers: how many rows an image gets, of which patches, and the rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lmmkit.api.components import ImageReducer
from lmmkit.api.model_info import Dims
from lmmkit.plugin_calls.guard import calling, returned, shown


def reducer_rows(reducer: ImageReducer, dims: Dims) -> int:
    """Returns the number of rows that a reducer gives an image."""
    with calling(reducer.name, "tokens", reducer):
        found = reducer.tokens(dims)
    if type(found) is not int or found < 1:
        raise returned(reducer.name, "tokens", reducer, shown(found), "a whole number (int), 1 or more")
    return found


def patches(reducer: ImageReducer, dims: Dims) -> Tensor | None:
    """Returns the encoder's tokens of which each row is made, [rows, m]; None if they depend on the image."""
    with calling(reducer.name, "patches", reducer):
        found = reducer.patches(dims)
    if found is None:
        return None
    k, most = reducer_rows(reducer, dims), dims.image.tokens - 1
    try:
        patch_KM = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        patch_KM = torch.empty(0)
    fits = not patch_KM.is_floating_point() and patch_KM.ndim == 2 and len(patch_KM) == k and patch_KM.numel()
    if not fits or not 0 <= int(patch_KM.min()) <= int(patch_KM.max()) <= most:
        expected = f"{k} rows of equally many numbers from 0 to {most}, or None"
        got = f"numbers from {patch_KM.min()} to {patch_KM.max()}" if fits else shown(found)
        raise returned(reducer.name, "patches", reducer, got, expected)
    return patch_KM.long()


def reduce(
    reducer: ImageReducer,
    features_INE: Tensor,
    connect: Callable[[Tensor], Tensor],
    module: nn.Module | None,
    shape: tuple[int, int],
) -> Tensor:
    """Returns the rows of all images, [I, rows, D]; `shape` is (rows, D)."""
    with calling(reducer.name, "reduce", reducer):
        found = reducer.reduce(features_INE, connect, module)
    if not isinstance(found, Tensor) or found.shape != (len(features_INE), *shape):
        raise returned(
            reducer.name, "reduce", reducer, shown(found), f"rows [images, {shape[0]}, {shape[1]}]"
        )
    return found
