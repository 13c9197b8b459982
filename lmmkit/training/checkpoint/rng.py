"""The state of torch's random generators, as tensors for a checkpoint.

Training does not use the global generators of numpy and Python, so they are not saved: data and plugins use
generators with a key for each draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def seed_stage(seed: int, stage: str, rank: int = 0, step: int = 0) -> None:
    """Seeds torch's generators, which dropout uses, from the recipe's seed, the stage and the rank.

    `step` of the stage: given at a resume without saved generator states.
    """
    further = f":{rank}:{step}" if rank or step else ""
    digest = hashlib.blake2b(f"{seed}:{stage}{further}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "big"))


def rng_state() -> dict[str, Tensor]:
    """Returns uint8 states: "cpu", and "cuda" for this rank's device if CUDA is in use."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state().cpu()
    return state


def set_rng_state(state: Mapping[str, Tensor]) -> None:
    """Restores a result of `rng_state`. Ignores a CUDA state on a machine without CUDA."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextmanager
def eval_no_grad(objective: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluates without side effects: no dropout, no graph; the generators' states are restored."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        objective.eval()
        try:
            yield
        finally:
            objective.train()
