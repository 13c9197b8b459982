"""Draws the tensors of needs: what a term reads from the model, without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from lmmkit.api.batch import Batch
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import (
    AttnMass,
    AttnTo,
    HiddenAt,
    HiddenMean,
    LogitsAt,
    LogProb,
    LogSumExp,
    Need,
    TeacherAt,
    VisionAt,
)

LOGITS = 512  # of a row of drawn logits, at most


def drawn(need: Need, batch: Batch, dims: Dims, generator: torch.Generator, logits: int = LOGITS) -> Tensor:
    """Returns a tensor of the shape, type and range that the model gives for a need, [Q, ...]. Rows of logits have at
    most `logits` of them."""
    n = batch.value_count(need)
    match need:
        case HiddenAt() | HiddenMean():
            return torch.randn(n, dims.width, generator=generator)
        case VisionAt(stage=stage):
            width = dims.image.width if stage == "encoder" else dims.width
            return torch.randn(n, width, generator=generator)
        case TeacherAt(teacher=teacher):
            return torch.randn(n, dims.teachers[teacher].width, generator=generator)
        case LogProb():
            return -8 * torch.rand(n, generator=generator)
        case LogSumExp():
            return math.log(dims.vocab) + torch.rand(n, generator=generator)
        case LogitsAt():
            return torch.randn(n, min(dims.vocab, logits), generator=generator)
        case AttnMass():
            return 0.05 + 0.9 * torch.rand(n, generator=generator)
        case AttnTo():
            key_QK = batch.gathers[need].key_QK
            assert key_QK is not None, "packing sets it for this need"
            return torch.rand(key_QK.shape, generator=generator).add(0.05).masked_fill(key_QK < 0, 0) / (
                1.1 * max(key_QK.shape[1], 1)
            )
        case _:
            assert_never(need)


def concatenated(parts: Sequence[Tensor]) -> Tensor:
    """Returns the tensor of a need in a micro-batch, from those in micro-batches of its samples, in order."""
    if parts and parts[0].ndim < 2:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)  # the maps of `AttnTo` are as wide as the batch needs
    return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])
