"""Tensors of model and optimizer for a checkpoint, by parameter name, and their restoration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lmmkit.errors import UserError, raise_all
from lmmkit.errors.training import DAMAGED
from lmmkit.objective import Objective
from lmmkit.progress import weighed
from lmmkit.training.checkpoint import manifest
from lmmkit.training.checkpoint.read import Checkpoint
from lmmkit.training.checkpoint.rng import set_rng_state
from lmmkit.training.distributed.fsdp import local_rows
from lmmkit.weights.model_folder import unique_tensors

CONSTANT = ("qmap1", "qmap2")  # bitsandbytes: its table of 8-bit values, equal for all


def state_tensors(objective: Objective, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns `model.<name>` and `optim.<name>.<slot>`: all tensors on which an update depends."""
    out = {f"model.{name}": tensor for name, tensor in unique_tensors(objective).items()}
    for key, slots, slot in _slots(objective, optimizer):
        out[key] = torch.as_tensor(slots[slot])  # bitsandbytes counts its updates in an int
    return out


def frozen(objective: Objective) -> dict[str, Tensor]:
    """Returns those of `state_tensors` that are frozen in the stage. Omits the plugins' tensors, because
    plugins may change frozen weights."""
    found = {f"lmm.{name}" for name, p in objective.lmm.named_parameters() if not p.requires_grad}
    return {f"model.{name}": tensor for name, tensor in unique_tensors(objective).items() if name in found}


def restore_state(objective: Objective, optimizer: torch.optim.Optimizer, saved: Checkpoint) -> None:
    """Restores the tensors from a checkpoint: of each, this rank's shard, for any number of saving ranks.

    Restores the generators too. Raises `UserError` if the checkpoint is from a different model.
    """
    if any(key.startswith("optim.") for key in saved.tensors):  # none before the first update
        _allocate(optimizer)
    wanted = state_tensors(objective, optimizer)
    raise_all(manifest.mismatches(saved.path, wanted))
    with torch.no_grad():
        for name in weighed("restoring the checkpoint", wanted, lambda name: wanted[name].nbytes):
            tensor = wanted[name]
            local, first = local_rows(tensor)
            local.copy_(saved.tensors.rows(name, first, len(local)) if local.ndim else saved.tensors[name])
    for key, slots, slot in _slots(objective, optimizer):
        if isinstance(slots[slot], int):
            slots[slot] = int(saved.tensors[key])
    if not saved.rng:
        return
    try:
        set_rng_state(saved.rng)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            DAMAGED.at(str(saved.path), got=f"no state for a random generator: {error}")
        ) from None


def _slots(
    objective: Objective, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yields (key in a checkpoint, a parameter's slots, name of one slot) for all slots that change."""
    names = {id(p): name for name, p in objective.named_parameters()}
    for parameter, slots in optimizer.state.items():
        for slot in slots:
            if slot not in CONSTANT:
                yield f"optim.{names[id(parameter)]}.{slot}", slots, slot


def _allocate(optimizer: torch.optim.Optimizer) -> None:
    """Creates the optimizer's slots by an update with zero gradients and zero learning rate."""
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
