"""Initial weights as a pure function of seed and module name."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmmkit import plugin_calls
from lmmkit.progress import weighed

PLUGINS = "plugins."  # before the name of a plugin's module in the objective


class NoDraws(TorchFunctionMode):
    """Leaves out draws into tensors of the meta device: they give nothing, but import torch's compiler (2 s)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _DRAWS and (tensor := kwargs["tensor"] if "tensor" in kwargs else args[0]).is_meta:
            return tensor
        return func(*args, **kwargs)


_DRAWS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_)


def init(module: nn.Module, seed: int | str, *, but: tuple[str, ...] = ()) -> None:
    """Draws the parameters and buffers of each module from its name and the seed only, independent of others.

    Modules below the names `but` are not changed: their values come from elsewhere.
    """
    kept = tuple(f"{each}." for each in but)
    sizes: dict[str, int] = {}
    for name, part in sorted(module.named_modules()):
        tensors = (*part.parameters(recurse=False), *part.buffers(recurse=False))
        if (
            tensors
            and getattr(part, "reset_parameters", None) is not None
            and not f"{name}.".startswith(kept)
        ):
            sizes[name] = sum(tensor.nbytes for tensor in tensors)
    parts = dict(module.named_modules())
    for name in weighed("drawing initial weights", sizes, sizes.__getitem__):
        digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest()
        reset: Any = parts[name].reset_parameters
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest, "big"))
            if name.startswith(PLUGINS):
                plugin_calls.reset(name.split(".")[1], parts[name], reset)
            else:
                reset()
