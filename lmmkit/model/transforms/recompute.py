"""Decoder blocks that run again in the backward pass, so that their activations need not be saved."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from torch import nn
from torch.utils.checkpoint import checkpoint


def set_recomputed(blocks: Iterable[nn.Module], number: int) -> None:
    """Wraps the forward of the first `number` blocks in a checkpoint, and restores that of the others."""
    for i, block in enumerate(blocks):
        block.__dict__.pop("forward", None)
        if i < number:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
