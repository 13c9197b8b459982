"""How much of the gradient of the attention mass a backend keeps in bfloat16."""

from functools import cache

import torch
from torch import Tensor

from lmmkit.attention.eager import Eager
from lmmkit.attention.forest import roots
from lmmkit.attention.schedule import AttentionSpec
from tests.support.attention_cases import CPU, marks, unturned

ROWS, HEADS, SIZE = 640, 8, 64
SPEC = AttentionSpec(roots([ROWS]), marks(ROWS, range(8, 264)), torch.arange(300, ROWS))


def kept(ratio: float, seed: int, backend, device: torch.device = CPU) -> float:
    """Returns the share of the mass gradient that bfloat16 keeps: its projection on the exact one. `ratio`: the
    gradient of the mass of one head over |d| |out|."""
    size, unit = _exact(seed)
    g = ratio * HEADS * size
    with_mass, without = (_gradients(backend, seed, torch.bfloat16, each, device) for each in (g, 0.0))
    return float((with_mass - without) @ unit / (unit @ unit)) / g


def _gradients(backend, seed: int, dtype: torch.dtype, g: float, device: torch.device) -> Tensor:
    """Returns the gradients of queries and keys, where the mass of each row has the gradient `g`."""
    q, k, v, d_out = (x.to(device, dtype) for x in _inputs(seed))
    leaves = [q.requires_grad_(), k.requires_grad_()]
    out, mass = unturned(backend.prepare(SPEC, device))(*leaves, v)
    found = torch.autograd.grad([out, mass], leaves, [d_out, torch.full_like(mass, g)])
    return torch.cat([x.double().flatten() for x in found]).cpu()


@cache
def _exact(seed: int) -> tuple[float, Tensor]:
    """Returns (the mean of |d| |out|, the gradients for a mass gradient of 1 alone), in float64."""
    q, k, v, d_out = (x.double() for x in _inputs(seed))
    out = unturned(Eager().prepare(SPEC, CPU))(q, k, v)[0]
    size = (d_out.norm(dim=-1) * out.norm(dim=-1))[SPEC.row_R].mean().item()
    one, none = (_gradients(Eager(), seed, torch.float64, g, CPU) for g in (1.0, 0.0))
    return size, one - none


def _inputs(seed: int) -> list[Tensor]:
    """Returns queries, keys, values and the gradient of the output, which bfloat16 has."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(ROWS, HEADS, SIZE, generator=draw).bfloat16() for _ in range(4)]
