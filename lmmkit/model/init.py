"""Initial weights as a pure function of seed and module name."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from lmmkit import plugin_calls

PLUGINS = "plugins."


def init(module: nn.Module, seed: int | str, *, but: tuple[str, ...] = ()) -> None:
    """Draws the parameters and buffers of each module from its name and the seed only, independent of others.

    Modules below the names `but` are not changed: their values come from elsewhere.
    """
    for name, part in sorted(module.named_modules()):
        if f"{name}.".startswith(tuple(f"{each}." for each in but)):
            continue
        reset = getattr(part, "reset_parameters", None)
        tensors = (*part.parameters(recurse=False), *part.buffers(recurse=False))
        if reset is not None and tensors:
            digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int.from_bytes(digest, "big"))
                if name.startswith(PLUGINS):
                    plugin_calls.reset(name.split(".")[1], part, reset)
                else:
                    reset()
