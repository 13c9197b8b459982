"""What a checkpoint holds of model and optimizer, by parameter name, and how it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmmkit.errors import UserError, raise_all
from lmmkit.errors.training import DAMAGED
from lmmkit.objective import Objective
from lmmkit.training.checkpoint import manifest
from lmmkit.training.checkpoint.read import Checkpoint
from lmmkit.training.checkpoint.rng import set_rng_state
from lmmkit.training.distributed.fsdp import local_rows
from lmmkit.weights.model_folder import unique_tensors

CONSTANT = ("qmap1", "qmap2")  # bitsandbytes: the values its 8 bits stand for, one table for all


def state_tensors(objective: Objective, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`model.<name>` and `optim.<name>.<slot>`: all that an update depends on."""
    out = {f"model.{name}": tensor for name, tensor in unique_tensors(objective).items()}
    for key, slots, slot in _slots(objective, optimizer):
        out[key] = torch.as_tensor(slots[slot])  # bitsandbytes counts its updates in an int
    return out


def frozen(objective: Objective) -> dict[str, Tensor]:
    """Returns those of `tensors` that the stage does not train; only the model's, since plugins may change
    weights without training."""
    found = {f"lmm.{name}" for name, p in objective.lmm.named_parameters() if not p.requires_grad}
    return {f"model.{name}": tensor for name, tensor in unique_tensors(objective).items() if name in found}


def restore_state(
    objective: Objective, optimizer: torch.optim.Optimizer, saved: Checkpoint, folder: Path
) -> None:
    """Puts a checkpoint's tensors back, of each the rows that this rank holds, however many ranks it is
    of. Raises `UserError` if it is of another model."""
    if any(key.startswith("optim.") for key in saved.tensors):  # none before the first update
        _allocate(optimizer)
    wanted = state_tensors(objective, optimizer)
    raise_all(manifest.mismatches(folder, wanted))
    with torch.no_grad():
        for name, tensor in wanted.items():
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
        raise UserError(DAMAGED.at(str(folder), got=f"no state for a random generator: {error}")) from None


def _slots(
    objective: Objective, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(key in a checkpoint, a parameter's slots, name of one) of all that changes."""
    names = {id(p): name for name, p in objective.named_parameters()}
    for parameter, slots in optimizer.state.items():
        for slot in slots:
            if slot not in CONSTANT:
                yield f"optim.{names[id(parameter)]}.{slot}", slots, slot


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
