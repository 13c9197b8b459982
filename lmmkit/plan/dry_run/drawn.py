"""Draws the tensors of needs: what a term reads from the model, without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import assert_never

import torch
from torch import Tensor

from lmmkit.api.batch import Batch
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import AttnMass, HiddenAt, HiddenMean, LogitsAt, LogProb, LogSumExp, Need, VisionAt

LOGITS = 512  # of a row of drawn logits, at most


def drawn(need: Need, batch: Batch, dims: Dims, generator: torch.Generator) -> Tensor:
    """Returns a tensor of the shape, type and range that the model gives for a need, [Q, ...]."""
    n = batch.value_count(need)
    match need:
        case HiddenAt() | HiddenMean():
            return torch.randn(n, dims.width, generator=generator)
        case VisionAt(stage=stage):
            width = dims.image.width if stage == "encoder" else dims.width
            return torch.randn(n, width, generator=generator)
        case LogProb():
            return -8 * torch.rand(n, generator=generator)
        case LogSumExp():
            return math.log(dims.vocab) + torch.rand(n, generator=generator)
        case LogitsAt():
            return torch.randn(n, min(dims.vocab, LOGITS), generator=generator)
        case AttnMass():
            return 0.05 + 0.9 * torch.rand(n, generator=generator)
        case _:
            assert_never(need)


def concatenated(parts: Sequence[Tensor]) -> Tensor:
    """Returns the tensor of a need in a micro-batch, from those in micro-batches of its samples, in order."""
    return torch.cat(list(parts))
