"""The state of torch's random generators, as tensors a checkpoint can hold.

numpy's and Python's global generators are not used in training, so they are not kept: data and
plugins draw from generators keyed by what they draw for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def seed_stage(seed: int, stage: str, rank: int = 0, step: int = 0) -> None:
    """Sets the generators to what follows from the recipe's seed: dropout draws from them.

    Each rank draws its own. `step`: of the stage, where no state of the generators tells how to go on.
    """
    further = f":{rank}:{step}" if rank or step else ""
    digest = hashlib.blake2b(f"{seed}:{stage}{further}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "big"))


def rng_state() -> dict[str, Tensor]:
    """uint8 states: "cpu", and "cuda" for this rank's device once CUDA is in use."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state().cpu()
    return state


def set_rng_state(state: Mapping[str, Tensor]) -> None:
    """Sets what `rng_state` gave. A CUDA state is passed over on a machine without CUDA."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextmanager
def eval_no_grad(objective: nn.Module, device: torch.device) -> Iterator[None]:
    """A look at a model in training that leaves no trace: no dropout, no graph, no random number drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        objective.eval()
        try:
            yield
        finally:
            objective.train()
