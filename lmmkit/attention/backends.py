"""Attention backends and their choice.

A backend prepares an `AttentionFn` once per batch; all layers share it. The function takes the
projections of all packed rows and rotates queries and keys by position. It returns the outputs of the
rows and the attention mass: how much each of the R query rows of `row_R` attends to the key rows (mean
over heads, float32), exact in value and gradient; and the weights on chosen keys that are asked for, see
`key_maps.py`. `eager` computes the complete attention map; the
other backends avoid it, see `merge.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lmmkit.attention.eager import Eager
from lmmkit.attention.flash import Flash
from lmmkit.attention.sdpa import Sdpa
from lmmkit.attention.trial import Backend, Conditions, refusal
from lmmkit.attention.xformers_backend import Xformers

_log = logging.getLogger("lmmkit")


class NoBackend(RuntimeError):
    """Reports that a backend cannot run. The message lists for each backend the reason, or `can run`."""


def choose(name: str, at: Conditions) -> Backend:
    """Returns the backend of this name; `auto` takes the first of xformers, flash, sdpa, eager that can run.

    Raises `NoBackend` if it cannot run there, or if no backend has this name.
    """
    for backend in _BACKENDS:
        if name in ("auto", backend.name) and not refusal(backend, at):
            return backend
    listed = "; ".join(f"{backend.name}: {refusal(backend, at) or 'can run'}" for backend in _BACKENDS)
    if name in (backend.name for backend in _BACKENDS):
        raise NoBackend(f"`{name}`, which cannot run on {at.device} in {at.dtype} ({listed})")
    raise NoBackend(f"`{name}`, which is no backend ({listed})")


def choice_text(chosen: Backend, at: Conditions) -> str:
    """Returns the chosen backend, and why each better one was not chosen."""
    better = _BACKENDS[: [backend.name for backend in _BACKENDS].index(chosen.name)]
    reasons = [f"{backend.name}: {refusal(backend, at) or 'not asked for'}" for backend in better]
    return f"{chosen.name} ({'; '.join(reasons)})" if reasons else chosen.name


def log_choice(chosen: Backend, at: Conditions) -> None:
    """Logs `choice_text`; as a warning if the choice computes complete maps on a device made for others."""
    level = logging.WARNING if chosen == Eager() and at.device.type == "cuda" else logging.INFO
    _log.log(level, "attention: %s", choice_text(chosen, at))


def all_backends() -> Sequence[Backend]:
    """Returns all backends, best first."""
    return _BACKENDS


_BACKENDS: tuple[Backend, ...] = (Xformers(), Flash(), Sdpa(), Eager())
