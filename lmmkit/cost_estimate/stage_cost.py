"""Estimates the cost of a stage: parameters, memory, tokens, hours. No weights are allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from lmmkit import build
from lmmkit.api.batch import Batch
from lmmkit.api.components import StepTerm
from lmmkit.cost_estimate.staged_model import all_parameters, staged
from lmmkit.cost_estimate.step_memory import WIDE, Load, encoder_peak, step_bytes
from lmmkit.objective import Objective, sum_by_name
from lmmkit.plan.prepare import Prepared
from lmmkit.plan.stage_plan import START
from lmmkit.plan.teachers import LARGE
from lmmkit.progress import counted
from lmmkit.weights.tensor_reader import opened

SAMPLED_STEPS = 4


def estimate(prepared: Prepared, stage: str, *, flops: float) -> dict:
    """Returns steps, tokens a step, supervised share (in the first steps), parameters, bytes and hours, and what
    the first steps leave out (`dropped`) of so many `records`.

    `bytes` are those of one device, by kind and in total: weights, gradients and optimizer, sharded over
    `parallel.shard` (`step_bytes`), and the activations of the device's fullest micro-batch
    (`activation_bytes`). The number of devices is the smallest that `parallel` allows. `hours` count for
    each weight and token 2 operations forward, 2 backward, 2 for the gradient if the weight is trainable,
    2 more forward with `recompute`, 2 for the first pass of terms over a step, 2 for the forward pass of
    a reference or of a teacher whose logits are read, and 2 for each weight and patch of a teacher whose features are,
    on shard x replicate devices with `flops` operations a second. Attention maps, encoder and data are left out.
    """
    recipe, section = prepared.recipe, prepared.recipe.stages[stage]
    objective, trainable = staged(prepared, stage)
    values = sum(p.numel() for p in all_parameters(trainable))
    pipeline, steps, devices = prepared.pipeline(stage), prepared.steps(stage), recipe.parallel.least
    numbers = range(min(SAMPLED_STEPS, steps))
    sampled = [pipeline.step(i) for i in counted(f"{stage}: packing steps", numbers)]
    own = sampled  # of one device
    if devices > 1:
        own = [replace(pipeline, rank=0, world=devices).step(i) for i in numbers]
    tokens = sum(len(batch) for step in sampled for batch in step)
    teachers = _Teachers.of(prepared, stage)
    size = step_bytes(recipe, section, objective, trainable, Load.of(own, recipe.speed.tokens))
    further = _reference_bytes(prepared, stage) | _teacher_bytes(prepared, teachers, own)
    operations = _operations(prepared, stage, objective, values, sampled, teachers)
    return {
        "steps": steps,
        "tokens_per_step": tokens / len(sampled),
        "micro_batches": sum(map(len, sampled)) / len(sampled),
        "supervised": sum(len(batch.target_S) for step in sampled for batch in step) / max(tokens, 1),
        "records": sum(len(pipeline.positions(i)) for i in numbers),
        "dropped": sum_by_name(step[0].dropped for step in sampled),
        "parameters": sum(p.numel() for p in objective.parameters()),
        "trainable": values,
        "bytes": {**size, **further, "all": size["all"] + sum(further.values())},
        "devices": devices,
        "hours": operations / (flops * devices) / 3600,
    }


@dataclass(frozen=True)
class _Teachers:
    """Holds the teachers of a stage: the encoders whose features it reads, without values, and of the models whose
    logits it reads the number of values."""

    encoders: Mapping[str, nn.Module]
    models: Mapping[str, int]

    @classmethod
    def of(cls, prepared: Prepared, stage: str) -> _Teachers:
        """Reads the headers of their folders."""
        plan, models = prepared.plans[stage], {}
        for name in plan.teacher_models:
            with opened(prepared.recipe.path(prepared.teachers[name].section.from_)) as tensors:
                models[name] = sum(math.prod(stored.shape) for stored in tensors.values())
        return cls({name: build.teacher_shell(prepared, name) for name in plan.teachers}, models)


def _operations(
    prepared: Prepared, stage: str, objective: Objective, trainable: int, sampled: Sequence[Sequence[Batch]],
    teachers: _Teachers,
) -> float:  # fmt: skip
    """Returns the operations of a stage, from steps that are sampled of it; see `estimate`. `trainable`: values."""
    depth, steps = objective.lmm.decoder.shape.depth, prepared.steps(stage)
    tokens = sum(len(batch) for step in sampled for batch in step)
    first_pass = any(isinstance(term, StepTerm) for term in objective.terms)
    further = first_pass + bool(prepared.plans[stage].reference)
    passes = 2 + 2 + 2 * prepared.recipe.speed.recomputed(depth) / depth + 2 * further
    decoder = sum(p.numel() for p in objective.lmm.decoder.parameters())
    of_token = passes * decoder + 2 * trainable + 2 * sum(teachers.models.values())
    of_features = sum(_feature_operations(prepared, teachers.encoders, step) for step in sampled)
    return tokens / len(sampled) * steps * of_token + steps * of_features / len(sampled)


def _feature_operations(prepared: Prepared, encoders: Mapping[str, nn.Module], step: Sequence[Batch]) -> int:
    """Returns the operations of the teachers whose features a step reads: 2 for each value and patch."""
    total = 0
    for name, encoder in encoders.items():
        values = sum(p.numel() for p in encoder.parameters())
        images = sum(len(batch.teacher_pixels[name]) for batch in step)
        total += 2 * values * images * prepared.dims.teachers[name].tokens
    return total


def _reference_bytes(prepared: Prepared, stage: str) -> dict[str, int]:
    """Returns the bytes on one rank of the weights of a reference that are not shared with the trained model. Its pass
    keeps no activations, and ends before those of the trained model begin."""
    if not (asked := prepared.plans[stage].reference):
        return {}
    if asked == START:
        own = sum(p.nbytes for p in build.reference_copies(prepared, stage, build.device_here()).parameters())
    else:
        narrow = prepared.recipe.numerics.frozen == "bfloat16"
        with opened(prepared.recipe.path(asked)) as tensors:
            shapes = [tensor.shape for tensor in tensors.values()]
        own = sum(math.prod(shape) * (2 if narrow and len(shape) > 1 else 4) for shape in shapes)
    return {"reference": -(-own // prepared.recipe.parallel.copy)}


def _feature_peak(
    prepared: Prepared, encoders: Mapping[str, nn.Module], steps: Iterable[Sequence[Batch]]
) -> int:
    """Returns the most bytes of a forward pass of a teacher whose features a stage reads."""
    batches = [batch for step in steps for batch in step]
    return max(
        (
            encoder_peak(encoder, len(b.teacher_pixels[n]), _width_of(prepared.teachers[n].section.dtype))
            for b in batches for n, encoder in encoders.items()
        ),
        default=0,
    )  # fmt: skip


def _width_of(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else WIDE


def _teacher_bytes(
    prepared: Prepared, teachers: _Teachers, steps: Iterable[Sequence[Batch]]
) -> dict[str, int]:
    """Returns the bytes of the stage's teachers on one rank: of their weights, of which large ones are sharded, and of
    what the passes of encoders need for a moment."""
    sizes = [sum(p.nbytes for p in encoder.parameters()) for encoder in teachers.encoders.values()]
    for name, values in teachers.models.items():
        sizes.append(values * _width_of(prepared.teachers[name].section.dtype))
    if not sizes:
        return {}
    copies = prepared.recipe.parallel.copy
    weights = sum(-(-size // copies) if size >= LARGE else size for size in sizes)
    return {"teachers": weights + _feature_peak(prepared, teachers.encoders, steps)}
