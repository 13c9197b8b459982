"""`torch.compile` around the attention of every layer, never across it: its kernels are chosen already.

What is compiled is plain tensor arithmetic, so one graph without a break serves all layers of a kind, and
shapes are free: micro-batches of any length run the same code.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

HALVES = ("before", "after")
BACKEND = "inductor"


def set_compiled(layers: Iterable[nn.Module], asked: bool) -> None:
    """Layers' halves `before` and `after` their attention compiled, or as they are written.

    Graphs of earlier layers are thrown away: what learns is part of a graph, and torch keeps only a few.
    """
    for layer in layers:
        for half in HALVES:
            layer.__dict__.pop(half, None)
            if asked:
                setattr(layer, half, torch.compile(getattr(layer, half), backend=BACKEND, dynamic=True))
    if asked:
        torch.compiler.reset()


def why_not(device: torch.device) -> str:
    """Why nothing can be compiled for `device` on this machine; empty when it can. Compiles a sum."""
    try:
        torch.compile(_probe, backend=BACKEND)(torch.ones(2, device=device))
    except Exception as error:  # a compiler, headers or Triton that are not there: each says so in its way
        return " ".join(str(error).strip().partition("\n\n")[0].split())
    return ""


def _probe(x: torch.Tensor) -> torch.Tensor:
    return (x * x + 1).sin()
