"""One optimizer step: forward and backward over its micro-batches, clip, update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmmkit.batch import Batch, Step
from lmmkit.data.features import FeatureCache
from lmmkit.objective import Objective, Outcome, add_counts, total
from lmmkit.recipe import Optim


@dataclass
class Report:
    """What a step did. `terms` are averages over counted items, None without items, with the next-token
    loss of each source as "loss/SOURCE" where there are several; `readings` and their `chance` are
    those of the terms, "term/name"."""

    loss: float
    terms: dict[str, float | None]
    grad_norm: float
    tokens: int
    readings: dict[str, float] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are numbers to update by."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def rate(optim: Optim, steps: int, done: int) -> float:
    """The factor on the learning rate for the update after `done` updates: linear warm-up from 0,
    then half a cosine to 0 (LLaVA-1.5: update 1 stands at 0)."""
    warm = math.ceil(optim.warmup * steps) if optim.warmup < 1 else int(optim.warmup)
    if done < warm:
        return done / warm
    if optim.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, steps - warm)))


def run_step(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    step: Step,
    weights: Mapping[str, float],
    *,
    clip: float | None,
    device: torch.device,
    readings: bool,
    features: FeatureCache | None = None,
) -> Report:
    """Averages every term over the whole step, then updates: 1 = N micro-batches.

    Where loss or gradient is not finite nothing is updated: weights and optimizer keep their bits.
    `features` is told what the encoder said of pictures it does not have.
    """
    counts = add_counts(step)
    sums: dict[str, Tensor] = {}
    totals: dict[str, list] = {}
    loss = torch.zeros((), device=device)
    optimizer.zero_grad(set_to_none=True)
    for batch in step:
        outcome = objective(batch.to(device))
        part = total(outcome.sums, weights, counts)
        part.backward()
        loss += part.detach()
        for name, value in (outcome.sums | outcome.by_source).items():
            sums[name] = sums.get(name, 0) + value.detach()
        if features is not None:
            _keep(features, batch, outcome)
        if readings:
            _read(objective, outcome, counts, totals)
    norm = _norm(objective, clip)
    # the step's figures come to the host before the update, which hangs on them, and not after it
    report = Report(
        loss=float(loss),
        terms={name: float(s) / counts[name] if counts[name] else None for name, s in sums.items()},
        grad_norm=float(norm),
        tokens=sum(len(batch) for batch in step),
        readings={name: float(t) / counts[name.split("/")[0]] for name, (t, _) in totals.items()},
        chance={name: float(c) / counts[name.split("/")[0]] for name, (_, c) in totals.items()},
        dropped=dict(step[0].dropped),
    )
    if report.finite:
        optimizer.step()
    return report


def _keep(features: FeatureCache, batch: Batch, outcome: Outcome) -> None:
    for at, name in batch.unknown:
        assert outcome.seen_IND is not None
        features.put(name, outcome.seen_IND[at])


@torch.no_grad()
def _read(objective: Objective, outcome: Outcome, counts: Mapping[str, int], totals: dict[str, list]) -> None:
    for term in (term for term in objective.terms if counts[term.name]):
        for name, reading in term.readings(outcome.ctxs[term.name]).items():
            both = totals.setdefault(f"{term.name}/{name}", [0.0, 0.0])
            both[0] += reading.total.detach()
            both[1] += reading.chance


def _norm(objective: Objective, clip: float | None) -> Tensor:
    """The norm of all gradients; scales them down to `clip` where that is given."""
    learning = [p for p in objective.parameters() if p.grad is not None]
    return torch.nn.utils.clip_grad_norm_(learning, math.inf if clip is None else clip)
