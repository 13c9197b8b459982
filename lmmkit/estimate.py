"""What a stage will take: parameters, memory of weights and optimizer, tokens. No weights are made."""

from __future__ import annotations

from lmmkit import assemble
from lmmkit.plan.prepare import Prepared

LEARNED_BYTES = 16  # float32 weight, gradient and two AdamW moments
FROZEN_BYTES = 4
SAMPLED_STEPS = 4


def estimate(prepared: Prepared, stage: str) -> dict:
    """Steps, tokens a step and supervised share (of the first steps), parameters, bytes."""
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
    return {
        "steps": steps,
        "tokens_per_step": tokens / len(seen),
        "micro_batches": sum(map(len, seen)) / len(seen),
        "supervised": sum(len(batch.target_S) for step in seen for batch in step) / tokens,
        "parameters": parameters,
        "learning": learning,
        "bytes": LEARNED_BYTES * learning + FROZEN_BYTES * (parameters - learning),
    }
