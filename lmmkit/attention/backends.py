"""Attention over a forest, with the attention mass of chosen rows: the backends and their choice.

A backend prepares an `AttentionFn` once a batch; all layers share it. It takes the projections of all
packed rows, turns queries and keys by their positions, and gives the rows' outputs and the mass
that each of the R asked rows puts on the key rows (mean over heads, float32), exact in value and
gradient. `eager` computes the complete map; the others do without one, see `merge.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lmmkit.attention.eager import Eager
from lmmkit.attention.interface import AttentionFn
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.attention.sdpa import Sdpa
from lmmkit.attention.xformers_backend import Xformers

_log = logging.getLogger("lmmkit")


class Backend(Protocol):
    """One way to compute attention."""

    @property
    def name(self) -> str:
        """What a recipe calls it."""
        ...

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str:
        """Why it cannot run there; empty when it can."""
        ...

    def prepare(self, spec: AttentionSpec, device: torch.device) -> AttentionFn:
        """The attention of a forest as `sight` asks for it."""
        ...

    def dense(self, q_INHK: Tensor, k_INHK: Tensor, v_INHK: Tensor) -> Tensor:
        """Bidirectional attention within each of I equal sequences: [I, N, H, K]."""
        ...


class NoBackend(RuntimeError):
    """What was asked for cannot run; the message says of every backend why not, or that it can."""


def choose(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend of this name; `auto` is the first that can run of xformers, sdpa, eager.

    Raises `NoBackend` if it cannot run there, or if there is none of that name.
    """
    reasons = {backend.name: backend.why_not(device, dtype) for backend in _BACKENDS}
    for backend in _BACKENDS:
        if name in ("auto", backend.name) and not reasons[backend.name]:
            return backend
    said = "; ".join(f"{each}: {reason or 'can run'}" for each, reason in reasons.items())
    if name in reasons:
        raise NoBackend(f"`{name}`, which cannot run on {device} in {dtype} ({said})")
    raise NoBackend(f"`{name}`, which is no backend ({said})")


def log_choice(chosen: Backend, device: torch.device, dtype: torch.dtype) -> None:
    """One line: the backend, and why none before it."""
    better = _BACKENDS[: [backend.name for backend in _BACKENDS].index(chosen.name)]
    reasons = [f"{backend.name}: {backend.why_not(device, dtype) or 'not asked for'}" for backend in better]
    _log.info("attention: %s%s", chosen.name, f" ({'; '.join(reasons)})" if reasons else "")


def all_backends() -> Sequence[Backend]:
    """All backends, best first."""
    return _BACKENDS


_BACKENDS: tuple[Backend, ...] = (Xformers(), Sdpa(), Eager())
