"""Estimates what a stage costs, from its recipe and data alone: memory, checkpoints, tokens and hours."""

from lmmkit.cost_estimate.checkpoint_size import checkpoint_bytes, checkpoint_room
from lmmkit.cost_estimate.stage_cost import estimate
from lmmkit.cost_estimate.staged_model import staged
from lmmkit.cost_estimate.step_memory import Load, activation_bytes, whole_parameters

__all__ = [
    "Load",
    "activation_bytes",
    "checkpoint_bytes",
    "checkpoint_room",
    "estimate",
    "staged",
    "whole_parameters",
]
