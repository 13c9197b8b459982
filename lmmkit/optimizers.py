"""The kinds of optimizer: how each is built, the bytes of its state, and what it requires."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lmmkit.api.components import LearnedTokens
from lmmkit.errors import MachineError
from lmmkit.errors.plan import NOT_INSTALLED
from lmmkit.objective import Objective
from lmmkit.recipe import Optim, Recipe, Stage

Groups = list[dict[str, Any]]

_WIDE = 4  # bytes of a float32 value
_SMALL = 4096  # values of a parameter below which bitsandbytes keeps moments in float32
_BLOCK = 256  # 8-bit values that share a float32 scale in bitsandbytes


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """Describes a kind of optimizer.

    `build` makes it from parameter groups. `state_bytes` returns the bytes of its state for a parameter with
    that many values. `shardable`: whether each of several ranks may update its shard of the parameters alone.
    `requires` imports the library of the kind, if lmmkit does not install it by default.
    """

    build: Callable[[Groups, Optim], torch.optim.Optimizer]
    state_bytes: Callable[[int], int]
    shardable: bool = True
    requires: Callable[[], object] = lambda: None


def _adamw(groups: Groups, optim: Optim) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps)


def _adamw_bytes(values: int) -> int:
    """Returns the bytes of two moments in float32."""
    return 2 * _WIDE * values


def _adamw8bit_class() -> type[torch.optim.Optimizer]:
    from bitsandbytes.optim.adamw import AdamW8bit  # an extra: imported only if the recipe names it

    return AdamW8bit


def _adamw8bit(groups: Groups, optim: Optim) -> torch.optim.Optimizer:
    return _adamw8bit_class()(groups, betas=optim.betas, eps=optim.eps)  # type: ignore[call-arg]


def _adamw8bit_bytes(values: int) -> int:
    """Returns the bytes of two moments in 8 bits, with one scale for each block of values."""
    return _adamw_bytes(values) if values < _SMALL else 2 * (values + _WIDE * -(-values // _BLOCK))


OPTIMIZERS: Mapping[str, OptimizerSpec] = {
    "adamw": OptimizerSpec(build=_adamw, state_bytes=_adamw_bytes),
    "adamw8bit": OptimizerSpec(
        build=_adamw8bit, state_bytes=_adamw8bit_bytes, shardable=False, requires=_adamw8bit_class
    ),
}


def build_optimizer(
    objective: Objective, stage: Stage, trainable: Mapping[str, list[nn.Parameter]]
) -> torch.optim.Optimizer:
    """Returns the stage's optimizer with each trainable parameter in exactly one group, by identity. Norms,
    biases and learned tokens have no weight decay."""
    undecayed = {
        id(p)
        for module in objective.modules()
        for p in module.parameters(recurse=False)
        if p.ndim < 2 or isinstance(module, LearnedTokens)
    }
    groups: Groups = []
    for name, parameters in trainable.items():
        lr = stage.train.parts()[name].lr or stage.optim.lr
        for decay in (True, False):
            members = [p for p in parameters if (id(p) not in undecayed) is decay]
            if members:
                groups.append({
                    "params": members, "lr": lr, "peak": lr, "part": name,
                    "weight_decay": stage.optim.weight_decay if decay else 0.0,
                })  # fmt: skip
    grouped = [id(p) for group in groups for p in group["params"]]
    wanted = {id(p) for p in objective.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped)) and set(grouped) == wanted, "a parameter in no or two groups"
    return OPTIMIZERS[stage.optim.kind].build(groups, stage.optim)


def state_bytes(kind: str, values: Iterable[int]) -> int:
    """Returns the bytes of the optimizer state for parameters with these numbers of values."""
    return sum(map(OPTIMIZERS[kind].state_bytes, values))


def check_optimizers(recipe: Recipe) -> None:
    """Raises `MachineError` with each stage whose optimizer library cannot be imported here."""
    problems = []
    for name, stage in recipe.stages.items():
        try:
            OPTIMIZERS[stage.optim.kind].requires()
        except Exception as error:  # not installed, or built for another torch
            got = f"`{stage.optim.kind}`, and its library cannot be imported: {error}"
            problems.append(NOT_INSTALLED.at(recipe.where(f"stages.{name}.optim.kind"), got=got))
    if problems:
        raise MachineError(problems)
