"""Estimates the memory of a training step on one device: weights, gradients, optimizer and activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from torch import nn

from lmmkit.api.batch import Batch
from lmmkit.cost_estimate.staged_model import all_parameters
from lmmkit.model.connectors.connector import Connector
from lmmkit.model.cross_entropy import chunk_rows
from lmmkit.model.timm_vit import TimmViT
from lmmkit.model.transforms import lora
from lmmkit.model.vision import ViT
from lmmkit.objective import Objective
from lmmkit.optimizers import state_bytes
from lmmkit.recipe import Recipe, Stage

WIDE = 4  # bytes of float32: trainable parameters, their gradients, and the states between blocks


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


def step_bytes(
    recipe: Recipe,
    stage: Stage,
    objective: Objective,
    trainable: Mapping[str, list[nn.Parameter]],
    load: Load,
) -> dict[str, int]:
    """Returns the bytes of one rank by kind. Sharded parameters are split along their first dimension.
    Complete at the peak are the root unit, two blocks, and gradients that are summed over a step."""
    trained, shards = all_parameters(trainable), recipe.parallel.copy

    def part(p: nn.Parameter) -> int:
        """Returns the number of values of a parameter on one rank."""
        return p.numel() if shards == 1 else -(-len(p) // shards) * (p.numel() // max(len(p), 1))

    kept = recipe.parallel.exchange == "step" and load.batches > 1
    whole, gathered = whole_parameters(recipe, objective) if shards > 1 else ([], [])
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


def whole_parameters(recipe: Recipe, objective: Objective) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
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
    return blocks + peak + logits + 2 * WIDE * max(trained) + copies + _image_bytes(objective, stage, a, load)


def _adapter_bytes(decoder: nn.Module, stage: Stage, a: int) -> int:
    """Returns the bytes that the adapters of all blocks store for one row."""
    asked = stage.train.text.lora if stage.train.text else None
    if asked is None:
        return 0
    inputs = [adapter.a.shape[1] for adapter in lora.adapters(decoder)]
    mask = (a == WIDE) * 3 + 1  # bytes a value: dropout stores a bool on CUDA, a factor on a CPU
    return sum(n * (a + mask if asked.dropout else a) + asked.r * a for n in inputs)


def _image_bytes(objective: Objective, stage: Stage, a: int, load: Load) -> int:
    """Returns the bytes of encoder and connector: what the graph stores, and the encoder's peak."""
    vision = objective.lmm.vision
    if isinstance(vision, ViT):
        spec, mlp, depth = vision.image, vision.shape.mlp, vision.shape.built
    elif isinstance(vision, TimmViT):
        spec, mlp, depth = vision.image, 4 * vision.image.width, vision.index + 1
    else:
        return 0
    tokens, width = load.images * spec.tokens, spec.width
    moment = encoder_peak(vision, load.images, a)
    connector = cast(Connector, objective.lmm.connector)
    kept = a * connector.stored_values(tokens) if stage.train.connector or stage.train.vision else 0
    if stage.train.vision:
        return kept + depth * tokens * (8 * width + a * (7 * width + 3 * mlp)) + moment
    return max(kept, moment)


def encoder_peak(vision: nn.Module, images: int, a: int) -> int:
    """Returns the bytes that the forward pass of an encoder needs for a moment."""
    assert isinstance(vision, ViT | TimmViT)
    mlp = vision.shape.mlp if isinstance(vision, ViT) else 4 * vision.image.width
    return images * vision.image.tokens * (12 * vision.image.width + 3 * a * mlp)
