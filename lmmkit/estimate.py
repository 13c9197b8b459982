"""What a stage will take: parameters, memory of weights and optimizer, tokens. No weights are made."""

from __future__ import annotations

from lmmkit import assemble
from lmmkit.plan.prepare import Prepared

LEARNED_BYTES = 16  # float32 weight, gradient and two AdamW moments
FROZEN_BYTES = 4
SAMPLED_STEPS = 4
DEVICE_FLOPS = 4e14  # of one device: 40 % of an H100's 989 bfloat16 TFLOP/s, an assumption


def estimate(prepared: Prepared, stage: str) -> dict:
    """Steps, tokens a step and supervised share (of the first steps), parameters, bytes and hours.

    `bytes` are of one device: weights, gradients and optimizer, cut over `speed.shard`. `hours`
    take 2 operations a weight and token forward, 2 more back through it and 2 for its gradient
    where it learns, once more forward with `recompute`, on shard x replicate devices of
    `DEVICE_FLOPS`; attention maps and data are left out.
    """
    recipe, plan = prepared.recipe, prepared.plans[stage]
    objective = assemble.shell(
        prepared.recipe, prepared.parts.components, prepared.dims, assemble.device_here()
    )
    learns = assemble.set_stage(objective, plan, recipe.stages[stage], seed=recipe.seed)
    learning = sum(p.numel() for parameters in learns.values() for p in parameters)
    parameters = sum(p.numel() for p in objective.parameters())
    pipeline, steps = prepared.pipeline(stage), prepared.steps(stage)
    seen = [pipeline.step(i) for i in range(min(SAMPLED_STEPS, steps))]
    tokens = sum(len(batch) for step in seen for batch in step)
    shards = recipe.speed.shard
    passes = 2 + 2 + 2 * (recipe.speed.recompute == "all")
    decoder = sum(p.numel() for p in objective.lmm.decoder.parameters())
    flops = tokens / len(seen) * steps * (passes * decoder + 2 * learning)
    return {
        "steps": steps,
        "tokens_per_step": tokens / len(seen),
        "micro_batches": sum(map(len, seen)) / len(seen),
        "supervised": sum(len(batch.target_S) for step in seen for batch in step) / tokens,
        "parameters": parameters,
        "learning": learning,
        "bytes": (LEARNED_BYTES * learning + FROZEN_BYTES * (parameters - learning)) // shards,
        "devices": shards * recipe.speed.replicate,
        "hours": flops / (DEVICE_FLOPS * shards * recipe.speed.replicate) / 3600,
    }
