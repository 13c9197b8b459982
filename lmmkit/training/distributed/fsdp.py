"""Sharding of weights, gradients and optimizer moments over several ranks (PyTorch's FSDP2).

Each block is a unit, so that only one block's weights are gathered at a time. All else is in the root unit:
embedding, head, norms, connector, plugins. A plugin is no separate unit, because its collectives would wait
for ranks that do not call it. An encoder that no stage trains is in no unit: each rank has all of it, and may
skip it.

Weights are sent in the dtype in which they are stored. Gradients are SUMMED in float32: the step has already
divided by the counts of all ranks. Autocast does the bfloat16 computation, so that a rank rounds in the same
places as a single process; FSDP's mixed precision would also round norms and biases.

torch's modules for sharding are imported when something is sharded: that takes a second of the start of a run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from lmmkit import build
from lmmkit.errors import raise_all
from lmmkit.errors.training import OPTIMIZER, PROCESS_COUNT
from lmmkit.model.decoder import Decoder
from lmmkit.model.timm_vit import TimmViT
from lmmkit.model.vision import ViT
from lmmkit.objective import Objective
from lmmkit.optimizers import OPTIMIZERS
from lmmkit.plan.prepare import Prepared
from lmmkit.plan.teachers import LARGE
from lmmkit.recipe import Recipe
from lmmkit.training.distributed.process_group import Ranks
from lmmkit.weights.weights_hash import weight_files

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

_SHOWN = 4  # how many valid numbers of processes an error lists


def check_world(recipe: Recipe, ranks: Ranks) -> None:
    """Raises `UserError` if several processes do not fit the recipe."""
    if ranks.alone:
        return
    parallel, problems = recipe.parallel, []
    if parallel.mesh(ranks.world) is None:
        fits = [n for n in range(2, 64 * parallel.least + 1) if parallel.mesh(n)][:_SHOWN]
        counts = f"1 or {', '.join(map(str, fits))}" + (", and so on" if len(fits) == _SHOWN else "")
        problems.append(
            PROCESS_COUNT.at(recipe.where("parallel"), got=f"{ranks.world} processes", counts=counts)
        )
    for name, stage in recipe.stages.items():
        if not OPTIMIZERS[stage.optim.kind].shardable:
            got = f"`{stage.optim.kind}` on {ranks.world} ranks"
            problems.append(OPTIMIZER.at(recipe.where(f"stages.{name}.optim.kind"), got=got))
    raise_all(problems)


def note_idle_keys(recipe: Recipe, ranks: Ranks) -> None:
    """Prints which keys have no effect with this number of processes."""
    if ranks.alone and (least := recipe.parallel.least) > 1:
        ranks.log_once(
            "one process trains alone, so `parallel` has no effect; "
            f"`torchrun --nproc-per-node {least} -m lmmkit train ...` starts more (docs/cluster.md)"
        )
    for name, stage in recipe.stages.items():
        if stage.batch.samples < ranks.world:
            ranks.log_once(
                f"stages.{name}.batch.samples is {stage.batch.samples}: some of {ranks.world} ranks have no work"
            )


def encoder_is_sharded(recipe: Recipe) -> bool:
    """Returns whether the encoder is sharded, which is so if any stage trains it."""
    return any(stage.train.vision is not None for stage in recipe.stages.values())


def sharded_teachers(prepared: Prepared, stage: str, ranks: Ranks) -> frozenset[str]:
    """Returns the teachers of a stage that are sharded, because they are large."""
    names = () if ranks.alone else prepared.plans[stage].teachers
    sizes = {n: sum(p.nbytes for p in build.teacher_shell(prepared, n).parameters()) for n in names}
    return frozenset(name for name, size in sizes.items() if size >= LARGE)


def sharded_teacher_models(prepared: Prepared, stage: str, ranks: Ranks) -> frozenset[str]:
    """Returns the whole models among the teachers of a stage that are sharded, because their files are large."""
    names = () if ranks.alone else prepared.plans[stage].teacher_models
    folders = {name: prepared.recipe.path(prepared.teachers[name].section.from_) for name in names}
    sizes = {name: sum(p.stat().st_size for p in weight_files(folder)) for name, folder in folders.items()}
    return frozenset(name for name, size in sizes.items() if size >= LARGE)


def sharded(
    prepared: Prepared, stage: str, ranks: Ranks, device: torch.device
) -> tuple[Objective, dict[str, list[nn.Parameter]]]:
    """Returns the objective for a stage, and its trainable parameters by part of the model.

    This rank's shard is allocated but not initialized.
    """
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    recipe = prepared.recipe
    objective = build.shell(recipe, prepared.instances.components, prepared.dims, device)
    build.narrow_parts(objective, build.frozen_narrow(recipe))
    trainable = build.set_stage(objective, prepared.plans[stage], recipe.stages[stage], seed=recipe.seed)
    part_of = {id(p): part for part, parameters in trainable.items() for p in parameters}
    parts = {name: part_of[id(p)] for name, p in objective.named_parameters() if id(p) in part_of}
    spread = encoder_is_sharded(recipe)
    ignored = None if spread else set(objective.lmm.vision.parameters())
    shard(objective, _units(objective, spread), recipe, ranks, device, ignored=ignored)
    register_fsdp_forward_method(objective, Objective.step_inputs.__name__)
    if isinstance(objective.lmm.vision, TimmViT):  # a unit, if it is trained
        register_fsdp_forward_method(objective.lmm.vision, TimmViT.packed.__name__)
    for unit in objective.modules():
        if isinstance(unit, FSDPModule):
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
    decoder, upstream = objective.lmm.decoder, set(trainable) - {"text"}
    if upstream and not decoder.embed.weight.requires_grad:
        decoder.embed.register_forward_hook(_anchor)
    objective.to_empty(device=device)
    found = dict(objective.named_parameters())
    out: dict[str, list[nn.Parameter]] = {part: [] for part in trainable}
    for name, part in parts.items():
        out[part].append(found[name])
    return objective, out


def shard(
    root: nn.Module, units: Iterable[nn.Module], recipe: Recipe, ranks: Ranks, device: torch.device, *,
    ignored: set[nn.Parameter] | None = None,
) -> None:  # fmt: skip
    """Shards each unit, and what of the root is in no unit, over the ranks. Parameters in `ignored` stay whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    shape = recipe.parallel.mesh(ranks.world)
    assert shape is not None, "`check_world` comes first"
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
    mesh = mesh if shape[0] > 1 else mesh["shard"]
    for unit in units:
        fully_shard(unit, mesh=mesh)
    fully_shard(root, mesh=mesh, ignored_params=ignored)


def _units(objective: Objective, spread: bool) -> Iterator[nn.Module]:
    """Yields the units below the root. timm's modules read each other's weights, so they are one unit."""
    yield from objective.lmm.decoder.blocks
    vision = objective.lmm.vision
    if spread:
        yield from vision.blocks if isinstance(vision, ViT) else [vision]


def blocks_of(parts: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Yields the blocks of decoders and encoders."""
    for part in parts:
        yield from part.blocks if isinstance(part, Decoder | ViT) else ()


def _anchor(embed: nn.Module, inputs: tuple[Tensor, ...], rows_TD: Tensor) -> Tensor:
    """Returns the rows with equal values, but requiring a gradient even if all are overwritten later.

    A backward pass through frozen blocks gathers their weights, so it must run on all ranks or on none.
    """
    return rows_TD + rows_TD.new_zeros((), requires_grad=torch.is_grad_enabled())


def _is_unit(module: nn.Module) -> TypeGuard[FSDPModule]:
    """Returns whether a module is sharded, which it cannot be before torch's module for that is imported."""
    found = sys.modules.get("torch.distributed.fsdp")
    return found is not None and isinstance(module, found.FSDPModule)


def _is_shard(tensor: Tensor) -> TypeGuard[DTensor]:
    """Returns whether a tensor is a shard, which it cannot be before torch's module for that is imported."""
    found = sys.modules.get("torch.distributed.tensor")
    return found is not None and isinstance(tensor, found.DTensor)


def set_grad_sync(objective: nn.Module, *, now: bool, last: bool) -> None:
    """Sets, before a micro-batch, whether its gradients are reduced `now` and whether it is the `last`."""
    if _is_unit(objective):
        objective.set_requires_gradient_sync(now)
        objective.set_is_last_backward(last)


@contextmanager
def unsharded(objective: nn.Module) -> Iterator[None]:
    """Gathers the root unit's weights within the block and shards them again after it.

    It is needed for passes that do not call the objective's `forward`, and for those without a backward.
    Every rank must run the same passes.
    """
    if not _is_unit(objective):
        yield
        return
    objective.unshard()
    try:
        yield
    finally:
        objective.reshard()


def local_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """Returns this rank's shard of a tensor, and the index of its first matrix row in the full tensor."""
    if not _is_shard(tensor):
        return tensor, 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.to_local(), offset[0] if offset else 0


def owns(tensor: Tensor, ranks: Ranks) -> bool:
    """Returns whether this rank must save its shard: of several replicas, the first does."""
    if not _is_shard(tensor):
        return ranks.first
    mesh = tensor.device_mesh
    return mesh.ndim == 1 or mesh.get_local_rank("replicate") == 0


def gather_full(tensor: Tensor) -> Tensor:
    """Returns the full tensor; every rank must call it."""
    return tensor.full_tensor() if _is_shard(tensor) else tensor


@torch.no_grad()
def scatter_from_rank0(full: Objective | None, objective: Objective) -> None:
    """Copies to every rank its shard of the first rank's `full` objective, one tensor at a time."""
    import torch.distributed as dist

    given = dict(_all(full)) if full is not None else {}
    for name, own in _all(objective):
        local, first = local_rows(own)
        tensor = (
            given[name].to(local.device)
            if given
            else torch.empty(own.shape, dtype=own.dtype, device=local.device)
        )
        dist.broadcast(tensor, 0)
        local.copy_(tensor[first : first + len(local)] if local.ndim else tensor)


@torch.no_grad()
def copy_shards(given: nn.Module, into: nn.Module) -> None:
    """Copies this rank's shard of every tensor from a module that is sharded over the same ranks."""
    values = dict(_all(given))
    for name, tensor in _all(into):
        local_rows(tensor)[0].copy_(local_rows(values[name])[0])


@torch.no_grad()
def gather_to_rank0(objective: Objective, full: Objective | None) -> None:
    """Copies the shards of all ranks into the first rank's `full` objective, one tensor at a time."""
    into = dict(_all(full)) if full is not None else {}
    for name, own in _all(objective):
        tensor = gather_full(own)
        if into:
            into[name].copy_(tensor)


def _all(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields every parameter and buffer once, also those that are not saved."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield name, tensor.detach()
