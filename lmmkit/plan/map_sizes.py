"""Checks that the attention weights which the terms of a stage read by `AttnTo` fit into `speed.attention_mb`."""

from __future__ import annotations

from collections.abc import Mapping

from lmmkit.api.batch import RowGather
from lmmkit.api.needs import AttnTo, Need
from lmmkit.errors import Problem
from lmmkit.errors.plan import ATTN_SIZE
from lmmkit.plan.prepare import Prepared

STEPS = 4  # packed for the check
WIDE = 4  # bytes of a float32


def map_problems(prepared: Prepared) -> list[Problem]:
    """Returns a problem for each stage whose fullest micro-batch has too many weights. It is taken from the first
    steps; if a step has several micro-batches, `speed.tokens` rows as dense as the densest are assumed."""
    problems, speed = [], prepared.recipe.speed
    for stage, plan in prepared.plans.items():
        if not any(isinstance(need, AttnTo) for need in plan.needs):
            continue
        pipeline = prepared.pipeline(stage)
        steps = [pipeline.step(i) for i in range(min(STEPS, prepared.steps(stage)))]
        batches = [batch for step in steps for batch in step if len(batch)]
        least = speed.tokens if any(len(step) > 1 for step in steps) else 0
        sizes = [map_bytes(batch.gathers) * max(1.0, least / len(batch)) for batch in batches]
        if max(sizes, default=0) > speed.attention_mb * 2**20:
            got = f"{max(sizes) / 2**20:.3g} MiB in stage `{stage}`"
            where = prepared.recipe.where("speed.attention_mb")
            problems.append(ATTN_SIZE.at(where, got=got, most=speed.attention_mb))
    return problems


def map_bytes(gathers: Mapping[Need, RowGather]) -> int:
    """Returns the bytes of the weights that all `AttnTo` of a micro-batch read."""
    maps = [gather.key_QK for need, gather in gathers.items() if isinstance(need, AttnTo)]
    return sum(WIDE * keys_QK.numel() for keys_QK in maps if keys_QK is not None)
