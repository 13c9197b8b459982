"""Initial weights as a pure function of seed and module name."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def init(module: nn.Module, seed: int | str, *, but: tuple[str, ...] = ()) -> None:
    """Draws the parameters of each module from its name and the seed only, independent of other modules.

    Modules below the names `but` are not changed: their values come from elsewhere.
    """
    for name, part in sorted(module.named_modules()):
        if f"{name}.".startswith(tuple(f"{each}." for each in but)):
            continue
        reset = getattr(part, "reset_parameters", None)
        if reset is not None and next(part.parameters(recurse=False), None) is not None:
            digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int.from_bytes(digest, "big"))
                reset()
