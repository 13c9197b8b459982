"""`torch.compile` for the code before and after the attention of each layer; attention is not compiled.

The compiled code is plain tensor arithmetic. So all layers of one kind share one graph without breaks,
and shapes are dynamic: micro-batches of any length, and packed images of any size, run the same code.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

HALVES = ("before", "after")
BACKEND = "inductor"


def set_compiled(layers: Iterable[nn.Module], asked: bool) -> None:
    """Compiles the methods `before` and `after` of these layers if `asked`, else restores the original ones.

    If `asked`, earlier graphs are dropped: a graph depends on which parameters are trainable, and torch
    keeps only a few graphs.
    """
    for layer in layers:
        for half in HALVES:
            layer.__dict__.pop(half, None)
            if asked:
                setattr(layer, half, torch.compile(getattr(layer, half), backend=BACKEND, dynamic=True))
    if asked:
        torch.compiler.reset()


def why_not(device: torch.device) -> str:
    """Returns why compiling for `device` fails on this machine; empty if it works. Compiles a probe."""
    try:
        torch.compile(_probe, backend=BACKEND)(torch.ones(2, device=device))
    except Exception as error:  # a missing compiler, header or Triton each raise different errors
        return " ".join(str(error).strip().partition("\n\n")[0].split())
    return ""


def _probe(x: torch.Tensor) -> torch.Tensor:
    return (x * x + 1).sin()
