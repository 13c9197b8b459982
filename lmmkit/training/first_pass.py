"""The first pass of a step with terms over all its items: what each micro-batch then adds to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lmmkit.api.batch import Batch
from lmmkit.api.components import StepTerm
from lmmkit.api.ctx import Moment
from lmmkit.model.step_terms import StepShare, items_of, shares
from lmmkit.objective import Objective
from lmmkit.training.checkpoint.rng import rng_state, set_rng_state
from lmmkit.training.distributed.fsdp import unsharded
from lmmkit.training.distributed.process_group import Ranks


class FirstPass:
    """Holds for each micro-batch its shares of the step's terms, and the generator states it started from.

    The second pass starts each micro-batch from the same states, so that its dropout is the same.
    """

    def __init__(self, shares: Sequence[Mapping[str, StepShare]], states: Sequence[Mapping[str, Tensor]]):
        self.shares, self.states = shares, states

    @classmethod
    def of(
        cls, objective: Objective, step: Sequence[Batch], device: torch.device, now: Moment, ranks: Ranks
    ) -> FirstPass:
        """Runs the first pass, on every rank. Without a term over the step it runs nothing."""
        terms = [term for term in objective.terms if isinstance(term, StepTerm)]
        if not terms:
            return cls([{}] * len(step), [])
        gather, states, items = partial(ranks.gather_rows, device=device), [], []
        with unsharded(objective), torch.no_grad():
            for batch in step:
                states.append(rng_state())
                ctxs = objective.step_inputs(batch.to(device), now)
                items.append({term.name: items_of(term, ctxs[term.name]) for term in terms})
            found: list[dict[str, StepShare]] = [{} for _ in step]
            for term in terms:
                own = [each[term.name] for each in items]
                every = shares(term, own, objective.module_of(term), gather, ranks.world)
                for each, share in zip(found, every, strict=False):
                    each[term.name] = share
        return cls(found, states)

    def replay(self, number: int) -> None:
        """Puts the generators into the states from which micro-batch `number` started."""
        if self.states:
            set_rng_state(self.states[number])
