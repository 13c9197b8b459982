"""Estimates the cost of a stage: parameters, memory, tokens, hours. No weights are allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from torch import nn

from lmmkit import build
from lmmkit.api.batch import Batch
from lmmkit.api.components import StepTerm
from lmmkit.model.connectors.connector import Connector
from lmmkit.model.cross_entropy import chunk_rows
from lmmkit.model.timm_vit import TimmViT
from lmmkit.model.transforms import lora
from lmmkit.model.vision import ViT
from lmmkit.objective import Objective, sum_by_name
from lmmkit.optimizers import state_bytes
from lmmkit.plan.prepare import Prepared
from lmmkit.plan.stage_plan import START
from lmmkit.plan.teachers import LARGE
from lmmkit.progress import counted
from lmmkit.recipe import Recipe, Stage
from lmmkit.weights.tensor_reader import opened
from lmmkit.weights.weights_hash import weight_files

SAMPLED_STEPS = 4
WIDE = 4  # bytes of float32: trainable parameters, their gradients, and the states between blocks


def estimate(prepared: Prepared, stage: str, *, flops: float) -> dict:
    """Returns steps, tokens a step, supervised share (in the first steps), parameters, bytes and hours, and what
    the first steps leave out (`dropped`) of so many `records`.

    `bytes` are those of one device, by kind and in total: weights, gradients and optimizer, sharded over
    `parallel.shard` (`_bytes`), and the activations of the device's fullest micro-batch
    (`activation_bytes`). The number of devices is the smallest that `parallel` allows. `hours` count for
    each weight and token 2 operations forward, 2 backward, 2 for the gradient if the weight is trainable,
    2 more forward with `recompute`, 2 for the first pass of terms over a step, 2 for the forward pass of
    a reference or of a teacher whose logits are read, and 2 for each weight and patch of a teacher whose features are,
    on shard x replicate devices with `flops` operations a second. Attention maps, encoder and data are left out.
    """
    recipe, section = prepared.recipe, prepared.recipe.stages[stage]
    objective, trainable = staged(prepared, stage)
    values = sum(p.numel() for p in _all(trainable))
    pipeline, steps = prepared.pipeline(stage), prepared.steps(stage)
    seen = [pipeline.step(i) for i in counted(f"{stage}: packing steps", range(min(SAMPLED_STEPS, steps)))]
    tokens = sum(len(batch) for step in seen for batch in step)
    depth = objective.lmm.decoder.shape.depth
    first_pass = any(isinstance(term, StepTerm) for term in objective.terms)
    further = first_pass + bool(prepared.plans[stage].reference)
    passes = 2 + 2 + 2 * recipe.speed.recomputed(depth) / depth + 2 * further
    decoder = sum(p.numel() for p in objective.lmm.decoder.parameters())
    teachers = _teacher_values(prepared, stage)
    encoders = {name: build.teacher_shell(prepared, name) for name in prepared.plans[stage].teachers}
    operations = tokens / len(seen) * steps * (passes * decoder + 2 * values + 2 * sum(teachers.values()))
    operations += steps * sum(_feature_operations(prepared, encoders, step) for step in seen) / len(seen)
    devices = recipe.parallel.least
    own = (
        [replace(pipeline, rank=0, world=devices).step(i) for i in range(len(seen))] if devices > 1 else seen
    )
    return {
        "steps": steps,
        "tokens_per_step": tokens / len(seen),
        "micro_batches": sum(map(len, seen)) / len(seen),
        "supervised": sum(len(batch.target_S) for step in seen for batch in step) / max(tokens, 1),
        "records": sum(len(pipeline.positions(i)) for i in range(len(seen))),
        "dropped": sum_by_name(step[0].dropped for step in seen),
        "parameters": sum(p.numel() for p in objective.parameters()),
        "trainable": values,
        "bytes": _with_teachers(
            _with_reference(
                _bytes(recipe, section, objective, trainable, Load.of(own, recipe.speed.tokens)),
                prepared,
                stage,
            ),
            prepared,
            encoders,
            teachers,
            _feature_peak(prepared, encoders, own),
        ),
        "devices": devices,
        "hours": operations / (flops * devices) / 3600,
    }


def _with_reference(found: dict[str, int], prepared: Prepared, stage: str) -> dict[str, int]:
    """Adds the weights of a reference that are not shared with the trained model, on one rank. Its pass keeps no
    activations, and ends before those of the trained model begin."""
    if not (asked := prepared.plans[stage].reference):
        return found
    device = build.device_here()
    if asked == START:
        own = sum(p.nbytes for p in build.reference_copies(prepared, stage, device).parameters())
    else:
        own = sum(path.stat().st_size for path in weight_files(prepared.recipe.path(asked)))
    own = -(-own // prepared.recipe.parallel.copy)
    return {**found, "reference": own, "all": found["all"] + own}


def _teacher_values(prepared: Prepared, stage: str) -> dict[str, int]:
    """Returns the number of values of each teacher of a stage whose logits are read."""
    found = {}
    for name in prepared.plans[stage].teacher_models:
        with opened(prepared.recipe.path(prepared.teachers[name].section.from_)) as tensors:
            found[name] = sum(math.prod(stored.shape) for stored in tensors.values())
    return found


def _feature_operations(prepared: Prepared, encoders: Mapping[str, nn.Module], step: Sequence[Batch]) -> int:
    """Returns the operations of the teachers whose features a step reads: 2 for each value and patch."""
    total = 0
    for name, encoder in encoders.items():
        values = sum(p.numel() for p in encoder.parameters())
        images = sum(len(batch.teacher_pixels[name]) for batch in step)
        total += 2 * values * images * prepared.dims.teachers[name].tokens
    return total


def _feature_peak(
    prepared: Prepared, encoders: Mapping[str, nn.Module], steps: Iterable[Sequence[Batch]]
) -> int:
    """Returns the most bytes of a forward pass of a teacher whose features a stage reads."""
    batches = [batch for step in steps for batch in step]
    return max(
        (
            _encoder_peak(encoder, len(b.teacher_pixels[n]), _width_of(prepared.teachers[n].section.dtype))
            for b in batches for n, encoder in encoders.items()
        ),
        default=0,
    )  # fmt: skip


def _width_of(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else WIDE


def _encoder_peak(vision: nn.Module, images: int, a: int) -> int:
    """Returns the bytes that the forward pass of an encoder needs for a moment."""
    assert isinstance(vision, ViT | TimmViT)
    mlp = vision.shape.mlp if isinstance(vision, ViT) else 4 * vision.image.width
    return images * vision.image.tokens * (12 * vision.image.width + 3 * a * mlp)


def _with_teachers(
    found: dict[str, int], prepared: Prepared, encoders: Mapping[str, nn.Module], models: Mapping[str, int],
    peak: int,
) -> dict[str, int]:  # fmt: skip
    """Adds the weights of the stage's teachers on one rank: of `models` so many values. Large ones are sharded.
    `peak`: what the passes of the others need for a moment."""
    sizes = [sum(p.nbytes for p in encoder.parameters()) for encoder in encoders.values()]
    for name, values in models.items():
        sizes.append(values * _width_of(prepared.teachers[name].section.dtype))
    if not sizes:
        return found
    copies = prepared.recipe.parallel.copy
    own = peak + sum(-(-size // copies) if size >= LARGE else size for size in sizes)
    return {**found, "teachers": own, "all": found["all"] + own}


def staged(prepared: Prepared, stage: str) -> tuple[Objective, dict[str, list[nn.Parameter]]]:
    """Returns the objective on the meta device, set to a stage, and the trainable parameters by part."""
    recipe = prepared.recipe
    objective = build.shell(recipe, prepared.instances.components, prepared.dims, build.device_here())
    build.narrow_parts(objective, build.frozen_narrow(recipe))
    return objective, build.set_stage(
        objective, prepared.plans[stage], recipe.stages[stage], seed=recipe.seed
    )


def checkpoint_bytes(prepared: Prepared) -> list[tuple[int, int]]:
    """Returns for each stage the bytes of a checkpoint, and of the frozen weights its checkpoints share."""
    sizes = []
    for name, stage in prepared.recipe.stages.items():
        objective, trainable = staged(prepared, name)
        frozen = sum(p.nbytes for p in objective.lmm.parameters() if not p.requires_grad)
        moments = state_bytes(stage.optim.kind, (p.numel() for p in _all(trainable)))
        sizes.append((_weights(objective) - frozen + moments, frozen))
    return sizes


def checkpoint_room(sizes: Sequence[tuple[int, int]], keep: int) -> int:
    """Returns the most bytes on disk of `keep` checkpoints and one being written, with two copies of the
    frozen weights of each of their stages. They are from one stage, or from consecutive stages."""
    slots = keep + 1
    rows = [sizes[i:j] for i in range(len(sizes)) for j in range(i + 1, min(len(sizes), i + slots) + 1)]
    return max(
        sum(own + 2 * frozen for own, frozen in row) + (slots - len(row)) * max(own for own, _ in row)
        for row in rows
    )


@dataclass(frozen=True)
class Load:
    """Holds the size of the fullest micro-batch in packed rows, images and rows that meet the head, and the
    most micro-batches of a step."""

    rows: int
    images: int
    head_rows: int
    batches: int = 1

    @classmethod
    def of(cls, steps: Iterable[Iterable[Batch]], most: int) -> Load:
        """Returns the load of packed steps. If a step has several micro-batches, at least `most` rows are
        assumed, with images and head rows as dense as in the densest micro-batch of `steps`. Steps may be
        empty."""
        steps = [list(step) for step in steps]
        batches = [batch for step in steps for batch in step if len(batch)]
        if not batches:
            return cls(0, 0, 0)
        rows = max(map(len, batches))
        rows = max(rows, most) if any(len(step) > 1 for step in steps) else rows
        images, head_rows = (
            max(part(batch) / len(batch) for batch in batches) for part in (_images, _head_rows)
        )
        return cls(rows, round(images * rows), round(head_rows * rows), max(map(len, steps)))


def _images(batch: Batch) -> float:
    """Returns the number of images; those that keep their shape count by their pixels."""
    pixels_ICXY, patches = batch.pixels_ICXY, batch.patches
    native = 0.0 if patches is None else patches.patch_RF.numel() / pixels_ICXY.shape[1:].numel()
    return len(pixels_ICXY) + native


def _head_rows(batch: Batch) -> int:
    return len(batch.target_S if batch.head is None else batch.head.row_R)


def _bytes(
    recipe: Recipe,
    stage: Stage,
    objective: Objective,
    trainable: Mapping[str, list[nn.Parameter]],
    load: Load,
) -> dict[str, int]:
    """Returns the bytes of one rank by kind. Sharded parameters are split along their first dimension.
    Complete at the peak are the root unit, two blocks, and gradients that are summed over a step."""
    trained, shards = _all(trainable), recipe.parallel.copy

    def part(p: nn.Parameter) -> int:
        """Returns the number of values of a parameter on one rank."""
        return p.numel() if shards == 1 else -(-len(p) // shards) * (p.numel() // max(len(p), 1))

    kept = recipe.parallel.exchange == "step" and load.batches > 1
    whole, gathered = _whole(recipe, objective) if shards > 1 else ([], [])
    apart = {id(p) for p in whole}
    out = {
        "weights": sum(
            p.nbytes if id(p) in apart else part(p) * p.element_size() for p in objective.parameters()
        )
        + sum(p.nbytes for p in gathered),
        "gradients": WIDE * sum(p.numel() if kept else part(p) for p in trained),
        "optimizer": state_bytes(stage.optim.kind, map(part, trained)),
        "activations": activation_bytes(recipe, stage, objective, load),
    }
    return out | {"all": sum(out.values())}


def _whole(recipe: Recipe, objective: Objective) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Returns the parameters that are complete on every rank, and those of the rest that are gathered at
    the peak (see `training/distributed/fsdp.py`)."""
    vision = objective.lmm.vision
    whole = [] if any(stage.train.vision for stage in recipe.stages.values()) else list(vision.parameters())
    units = [list(block.parameters()) for block in objective.lmm.decoder.blocks]
    if not whole and isinstance(vision, ViT):
        units += [list(block.parameters()) for block in vision.blocks]
    elsewhere = {id(p) for p in [*whole, *(p for unit in units for p in unit)]}
    root = [p for p in objective.parameters() if id(p) not in elsewhere]
    return whole, root + 2 * max(units, key=lambda unit: sum(p.nbytes for p in unit))


def activation_bytes(recipe: Recipe, stage: Stage, objective: Objective, load: Load) -> int:
    """Returns the peak bytes of one forward and backward pass, without weights, gradients and optimizer.

    `objective` is set to the stage. With T rows, I images of N tokens, width D, packed projection
    C, query width Q, MLP width M, and a = 2 bytes a value under autocast, else 4, the graph stores

    - for each block 8 T D (the states before attention and before the MLP, float32) + a T (C + Q + 2 M);
      if its matrices are trainable, also their inputs, a T (2 D + M); under LoRA instead the input of each
      adapter with its dropout mask, and r values. A recomputed block: 4 T D, plus all of one such block;
    - for a trainable connector with a row for each token a I N (D_vision + 2 D); for each block of a trainable encoder
      8 I N D_vision + a I N (7 D_vision + 3 M_vision), never recomputed.

    The peak adds: the widest gradients of a block, a T 4 M + 8 T D; the rows before and after the
    decoder, 16 T D; the logits of one chunk, 8 + a bytes each; twice the largest gradient; under
    autocast a bfloat16 copy of all trainable parameters, and of frozen float32 matrices as far as the
    graph reaches. Buffers of kernels and unused memory of the allocator are left out.
    """
    a = 2 if recipe.numerics.compute == "bfloat16" else WIDE
    shape, decoder = objective.lmm.decoder.shape, objective.lmm.decoder
    again = recipe.speed.recomputed(shape.depth)
    T, D, M = load.rows, shape.width, shape.mlp
    Q, C = shape.heads * shape.head_size, (shape.heads + 2 * shape.kv_heads) * shape.head_size
    block = 8 * T * D + a * T * (C + Q + 2 * M)
    train = stage.train
    if train.text is not None and train.text.lora is None:
        block += a * T * (2 * D + M)
    block += T * _adapter_bytes(decoder, stage, a) // shape.depth
    blocks = (shape.depth - again) * block + again * WIDE * T * D + block * (again > 0)
    peak = a * T * 4 * M + 8 * T * D + 16 * T * D
    logits = min(load.head_rows, chunk_rows(shape.vocab)) * shape.vocab * (8 + a)
    trained = [p.numel() for p in objective.parameters() if p.requires_grad]
    copies = 2 * sum(trained) * (a == 2)
    if a == 2:
        frozen = sum(
            p.numel() for p in decoder.parameters() if not p.requires_grad and p.element_size() == WIDE
        )
        copies += 2 * frozen * max(shape.depth - again, 1) // shape.depth
    return blocks + peak + logits + 2 * WIDE * max(trained) + copies + _seen_bytes(objective, stage, a, load)


def _adapter_bytes(decoder: nn.Module, stage: Stage, a: int) -> int:
    """Returns the bytes that the adapters of all blocks store for one row."""
    asked = stage.train.text.lora if stage.train.text else None
    if asked is None:
        return 0
    inputs = [adapter.a.shape[1] for adapter in lora.adapters(decoder)]
    mask = (a == WIDE) * 3 + 1  # bytes a value: dropout stores a bool on CUDA, a factor on a CPU
    return sum(n * (a + mask if asked.dropout else a) + asked.r * a for n in inputs)


def _seen_bytes(objective: Objective, stage: Stage, a: int, load: Load) -> int:
    """Returns the bytes of encoder and connector: what the graph stores, and the encoder's peak."""
    vision = objective.lmm.vision
    if isinstance(vision, ViT):
        spec, mlp, depth = vision.image, vision.shape.mlp, vision.shape.built
    elif isinstance(vision, TimmViT):
        spec, mlp, depth = vision.image, 4 * vision.image.width, vision.index + 1
    else:
        return 0
    tokens, width = load.images * spec.tokens, spec.width
    moment = _encoder_peak(vision, load.images, a)
    connector = cast(Connector, objective.lmm.connector)
    kept = a * connector.stored_values(tokens) if stage.train.connector or stage.train.vision else 0
    if stage.train.vision:
        return kept + depth * tokens * (8 * width + a * (7 * width + 3 * mlp)) + moment
    return max(kept, moment)


def _weights(objective: Objective) -> int:
    return sum(p.nbytes for p in objective.parameters())


def _all(trainable: Mapping[str, list[nn.Parameter]]) -> list[nn.Parameter]:
    return [p for parameters in trainable.values() for p in parameters]
