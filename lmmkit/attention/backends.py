"""Attention backends and their choice.

A backend prepares an `AttentionFn` once per batch; all layers share it. The function takes the
projections of all packed rows and rotates queries and keys by position. It returns the outputs of the
rows and the attention mass: how much each of the R query rows of `row_R` attends to the key rows (mean
over heads, float32), exact in value and gradient. `eager` computes the complete attention map; the
other backends avoid it, see `merge.py`.
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
    """Defines the interface of an attention backend."""

    @property
    def name(self) -> str:
        """Returns the name used in recipes."""
        ...

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str:
        """Returns why the backend cannot run there; empty if it can."""
        ...

    def prepare(self, spec: AttentionSpec, device: torch.device) -> AttentionFn:
        """Returns the attention function for `spec`."""
        ...

    def dense(self, q_INHK: Tensor, k_INHK: Tensor, v_INHK: Tensor) -> Tensor:
        """Returns bidirectional attention within each of I sequences of equal length: [I, N, H, K]."""
        ...


class NoBackend(RuntimeError):
    """Reports that a backend cannot run. The message lists for each backend the reason, or `can run`."""


def choose(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """Returns the backend of this name; `auto` takes the first of xformers, sdpa, eager that can run.

    Raises `NoBackend` if it cannot run there, or if no backend has this name.
    """
    reasons = {backend.name: backend.why_not(device, dtype) for backend in _BACKENDS}
    for backend in _BACKENDS:
        if name in ("auto", backend.name) and not reasons[backend.name]:
            return backend
    listed = "; ".join(f"{each}: {reason or 'can run'}" for each, reason in reasons.items())
    if name in reasons:
        raise NoBackend(f"`{name}`, which cannot run on {device} in {dtype} ({listed})")
    raise NoBackend(f"`{name}`, which is no backend ({listed})")


def log_choice(chosen: Backend, device: torch.device, dtype: torch.dtype) -> None:
    """Logs one line: the chosen backend, and why each better one was not chosen."""
    better = _BACKENDS[: [backend.name for backend in _BACKENDS].index(chosen.name)]
    reasons = [f"{backend.name}: {backend.why_not(device, dtype) or 'not asked for'}" for backend in better]
    _log.info("attention: %s%s", chosen.name, f" ({'; '.join(reasons)})" if reasons else "")


def all_backends() -> Sequence[Backend]:
    """Returns all backends, best first."""
    return _BACKENDS


_BACKENDS: tuple[Backend, ...] = (Xformers(), Sdpa(), Eager())
