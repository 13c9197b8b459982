"""Conversion of token ids [B, T] with padding and image placeholders, as in other libraries, to a batch.

Padding is dropped. Each sequence becomes a separate tree. Each placeholder becomes one row of an image,
in order over the complete batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lmmkit.api.batch import Batch, EmbedScatter, RowGather
from lmmkit.attention.forest import unshared
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.progress import plural

EMPTY = torch.empty(0, dtype=torch.int64)


def batch_of_ids(
    input_ids: Tensor, pixel_values: Tensor | None, attention_mask: Tensor | None, *,
    image_token: int | None, image_rows: int, vocab: int,
) -> tuple[Batch, list[np.ndarray]]:  # fmt: skip
    """Returns a batch without targets, and for each sequence the rows of its unpadded positions.

    Args:
        input_ids: [B, T] int64; one `image_token` for each row of an image.
        pixel_values: [I, 3, X, Y], preprocessed, in the order of their placeholders; or None.
        attention_mask: [B, T], 0 where padded; or None.
        image_token: the id of the placeholder; None if the model takes no images.
        image_rows: the number of rows of one image.
        vocab: number of embeddings.

    Raises:
        ValueError: shapes that do not fit together, ids outside the vocabulary, a number of
            placeholders that is not `image_rows` per image.
    """
    if input_ids.ndim != 2 or input_ids.dtype != torch.int64:
        raise ValueError(f"input_ids: expected [B, T] int64, got {list(input_ids.shape)} {input_ids.dtype}")
    mask = np.ones(input_ids.shape, bool) if attention_mask is None else attention_mask.cpu().numpy() != 0
    if mask.shape != tuple(input_ids.shape):
        expected = f"the shape of input_ids, {list(input_ids.shape)}"
        raise ValueError(f"attention_mask: expected {expected}, got {list(mask.shape)}")
    if not mask.any(1).all():
        raise ValueError("attention_mask: expected a token in each sequence, got one of padding only")
    ids = input_ids.cpu().numpy()
    sequences = [line[kept] for line, kept in zip(ids, mask, strict=True)]
    forest, paths = unshared([len(sequence) for sequence in sequences])
    id_T = np.full(len(forest), -1, np.int64)
    for sequence, path in zip(sequences, paths, strict=True):
        id_T[path] = sequence
    row_N = np.concatenate([p[s == image_token] for s, p in zip(sequences, paths, strict=True)])
    images = 0 if pixel_values is None else len(pixel_values)
    if len(row_N) != images * image_rows:
        got = f"{plural(len(row_N), 'image placeholder')} (id {image_token}) and {plural(images, 'image')}"
        raise ValueError(f"input_ids: expected {image_rows} placeholders an image, got {got}")
    id_T[row_N] = -1
    outside = (id_T >= vocab) | ((id_T < 0) & ~np.isin(np.arange(len(id_T)), row_N))
    if outside.any():
        raise ValueError(
            f"input_ids: expected ids from 0 to {vocab - 1}, got the token id {id_T[outside][0]}"
        )
    scatters = (
        (EmbedScatter("vision", torch.from_numpy(row_N), torch.arange(len(row_N))),) if len(row_N) else ()
    )
    spec = AttentionSpec(forest, torch.zeros(len(forest), dtype=torch.bool), EMPTY)
    batch = Batch(
        attention=spec, last=spec, id_T=torch.from_numpy(id_T), scatters=scatters,
        pixels_ICXY=torch.empty(0, 3, 0, 0) if pixel_values is None else pixel_values,
        predict=RowGather.of(EMPTY, EMPTY), target_S=EMPTY, term_S=EMPTY, text_terms=("next_token",),
    )  # fmt: skip
    return batch, paths
