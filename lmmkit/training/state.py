"""What a checkpoint holds of model and optimizer, by parameter name, and how it comes back."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lmmkit.errors import raise_all
from lmmkit.objective import Objective
from lmmkit.training import manifest
from lmmkit.training.checkpoint import Checkpoint
from lmmkit.training.rng import set_rng_state
from lmmkit.weights.own import unique_tensors


def tensors(objective: Objective, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`model.<name>` and `optim.<name>.<slot>`: all that an update depends on."""
    names = {id(p): name for name, p in objective.named_parameters()}
    out = {f"model.{name}": tensor for name, tensor in unique_tensors(objective).items()}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            out[f"optim.{names[id(parameter)]}.{slot}"] = value
    return out


def restore(objective: Objective, optimizer: torch.optim.Optimizer, saved: Checkpoint, folder: Path) -> None:
    """Puts a checkpoint's tensors back. Raises `UserError` if it is of another model."""
    _allocate(optimizer)
    wanted = tensors(objective, optimizer)
    raise_all(manifest.mismatches(folder, wanted))
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(saved.tensors[name])
    set_rng_state(saved.rng)


def _allocate(optimizer: torch.optim.Optimizer) -> None:
    """Makes the optimizer's slots by an update that moves nothing."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    lrs = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        group["lr"] = lr
