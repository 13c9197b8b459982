"""LoRA: low-rank updates (Hu et al., 2021), applied to a decoder from outside and merged into it later.

A linear keeps its forward and its names. A hook adds the adapter's output for the same input,
`scale * b(a(dropout(x)))`, where `b` starts at zero. A fused linear has one adapter per named slice.
The hook reads whether its adapters are `off`, so the same base serves as the model before the updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.model.init import init
from lmmkit.model.layers import FusedLinear, Linear

TARGETS = ("q", "k", "v", "out", "gate", "up", "down")
CHILD = "lora"


class LoraAdapter(nn.Module):
    """Holds the update of one matrix [out, in]: scale * b @ a, of rank `r`."""

    def __init__(self, n_in: int, n_out: int, *, r: int, alpha: float, dropout: float):
        super().__init__()
        self.a = nn.Parameter(torch.empty(r, n_in))
        self.b = nn.Parameter(torch.empty(n_out, r))
        self.scale, self.dropout = alpha / r, dropout

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        nn.init.zeros_(self.b)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(F.dropout(x, self.dropout, self.training), self.a), self.b)

    def matrix(self) -> Tensor:
        """Returns the update that is added to the weight, [out, in]."""
        return self.scale * (self.b @ self.a)


class Adapters(nn.ModuleDict):
    """Holds the adapters of one linear by the name of its matrix, or of the slices of a fused one.

    The hook adds nothing while they are `off`. `take_off` removes the hook.
    """

    off: bool = False
    take_off: Callable[[], None]


def attach(
    module: nn.Module, *, r: int, alpha: float, dropout: float, targets: Sequence[str], seed: int
) -> list[nn.Parameter]:
    """Attaches adapters to the linears of the blocks that `targets` names. Returns their parameters.

    Each adapter is drawn from seed and name only. `targets`: names from `TARGETS`.
    """
    parameters = []
    for path, linear in list(module.named_modules()):
        name = path.rpartition(".")[2]
        if not path.startswith("blocks.") or not isinstance(linear, FusedLinear | Linear):
            continue
        sizes = _sizes(linear, name, targets)
        if not sizes:
            continue
        width, device = linear.weight.shape[1], linear.weight.device
        adapters = Adapters(
            {
                part: LoraAdapter(width, size, r=r, alpha=alpha, dropout=dropout).to(device)
                for part, size in sizes.items()
            }
        )
        for part, adapter in adapters.items():
            init(adapter, f"{seed}:{path}.{part}")
        linear.add_module(CHILD, adapters)
        hook = _add_fused if isinstance(linear, FusedLinear) else _add
        adapters.take_off = linear.register_forward_hook(hook).remove
        parameters += adapters.parameters()
    return parameters


@contextmanager
def updates_off(module: nn.Module) -> Iterator[None]:
    """Makes the module compute without its updates within the block, as before they were attached."""
    found = [adapters for _, adapters in _adapted(module)]
    for adapters in found:
        adapters.off = True
    try:
        yield
    finally:
        for adapters in found:
            adapters.off = False


def updates(module: nn.Module) -> dict[str, Tensor]:
    """Returns the factors of the adapters by name; empty if there are no adapters."""
    return {name: p.detach() for name, p in module.named_parameters() if f".{CHILD}." in name}


@torch.no_grad()
def merge(module: nn.Module) -> None:
    """Adds each adapter to the weight that it updates, and removes the adapter."""
    for linear, adapters in list(_adapted(module)):
        _add_to(linear.weight, linear, adapters)
        adapters.take_off()
        delattr(linear, CHILD)


@torch.no_grad()
def merged(module: nn.Module) -> dict[str, Tensor]:
    """Returns the merged weights by name, as copies on the CPU; the model is unchanged."""
    out = {}
    for path, linear in module.named_modules():
        adapters = getattr(linear, CHILD, None)
        if isinstance(linear, FusedLinear | Linear) and isinstance(adapters, Adapters):
            weight = linear.weight.clone()
            _add_to(weight, linear, adapters)
            out[f"{path}.weight"] = weight.cpu()
    return out


def _add_to(weight: Tensor, linear: FusedLinear | Linear, adapters: Adapters) -> None:
    for part, adapter in adapters.items():
        rows = linear.slices[part] if isinstance(linear, FusedLinear) else slice(None)
        # added in the wider of the two dtypes, and rounded once
        weight[rows] = linear.weight[rows] + adapter.matrix()  # type: ignore[operator]


def adapters(module: nn.Module) -> list[LoraAdapter]:
    """Returns all attached adapters."""
    return [part for part in module.modules() if isinstance(part, LoraAdapter)]


def _adapted(module: nn.Module) -> Iterator[tuple[FusedLinear | Linear, Adapters]]:
    for part in module.modules():
        adapters = getattr(part, CHILD, None)
        if isinstance(part, FusedLinear | Linear) and isinstance(adapters, Adapters):
            yield part, adapters


def _sizes(linear: FusedLinear | Linear, name: str, targets: Iterable[str]) -> dict[str, int]:
    if isinstance(linear, FusedLinear):
        return {part: size for part, size in linear.sizes.items() if part in targets}
    return {name: linear.out_features} if name in targets else {}


def _add(linear: nn.Module, inputs: tuple[Tensor], out: Tensor) -> Tensor:
    adapters = getattr(linear, CHILD)
    if adapters.off:
        return out
    (adapter,) = adapters.values()
    return out + adapter(inputs[0]).to(out)


def _add_fused(linear: nn.Module, inputs: tuple[Tensor], out: Tensor) -> Tensor:
    assert isinstance(linear, FusedLinear)
    adapters, (x,) = getattr(linear, CHILD), inputs
    if adapters.off:
        return out
    parts = [
        adapters[part](x).to(out) if part in adapters else out.new_zeros(*out.shape[:-1], size)
        for part, size in linear.sizes.items()
    ]
    return out + torch.cat(parts, -1)
