"""One optimizer step: forward and backward over its micro-batches, gradient clipping, update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lmmkit import plugin_calls
from lmmkit.api.batch import Batch, Step
from lmmkit.api.ctx import EVALUATION, Moment
from lmmkit.objective import Objective, divisors, sum_by_name, total
from lmmkit.progress import plural
from lmmkit.recipe import Optim
from lmmkit.training.distributed.fsdp import gather_full, set_grad_sync
from lmmkit.training.distributed.process_group import ALONE, Ranks
from lmmkit.training.first_pass import FirstPass

BY_SOURCE = "loss/"
EMPTY_STEP = "empty_steps"  # the name under which steps without an update for want of items are counted


@dataclass
class StepReport:
    """Describes the result of a step.

    `terms` are averages over counted items, None without items. With several sources it also has the
    next-token loss of each source, "loss/SOURCE". `metrics` and their `chance` are those of the terms,
    "term/name". `bad_weights` counts weights of rows that may not be, by plugin. A step
    in which no term with a weight has items is empty: `loss` and `grad_norm` are None.
    """

    loss: float | None
    terms: dict[str, float | None]
    grad_norm: float | None
    tokens: int
    metrics: dict[str, float] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    bad_weights: dict[str, float] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Returns whether there was nothing to learn from."""
        return self.loss is None

    @property
    def finite(self) -> bool:
        """Returns whether loss and gradient norm are finite, as far as there are any."""
        return all(math.isfinite(value) for value in (self.loss, self.grad_norm) if value is not None)


@dataclass(frozen=True)
class Facts:
    """Holds sums over all ranks for a step before its forward pass; of `micro_batches`, the maximum.

    `counts` are those by which the sums are divided, and `rows` is the number of rows of `next_token`.
    """

    counts: dict[str, float]
    rows: int
    micro_batches: int
    tokens: int
    dropped: dict[str, int]


def agree(ranks: Ranks, step: Step) -> Facts:
    """Exchanges the counts of a step between ranks, once, as host integers; reads nothing from a device."""
    shares = ranks.gather(
        [sum_by_name(batch.count for batch in step), len(step), sum(map(len, step)), dict(step[0].dropped)]
    )
    counts, micro_batches, tokens, dropped = zip(*shares, strict=True)
    found = sum_by_name(counts)
    return Facts(divisors(found), found["next_token"], max(micro_batches), sum(tokens), sum_by_name(dropped))


def rate(optim: Optim, steps: int, done: int) -> float:
    """Returns the learning rate factor for the update after `done` updates.

    Linear warm-up from 0, then half a cosine to 0, or constant (LLaVA-1.5: the first update has rate 0).
    """
    warm = math.ceil(optim.warmup * steps) if optim.warmup < 1 else int(optim.warmup)
    if done < warm:
        return done / warm
    if optim.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, steps - warm)))


def set_rate(optimizer: torch.optim.Optimizer, optim: Optim, steps: int, done: int) -> None:
    """Sets the learning rate of every parameter group for the update after `done` updates."""
    factor = rate(optim, steps, done)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def run_step(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    step: Step,
    weights: Mapping[str, float],
    *,
    clip: float | None,
    device: torch.device,
    metrics: bool,
    ranks: Ranks = ALONE,
    empty: Batch | None = None,
    each: bool = False,
    now: Moment = EVALUATION,
) -> StepReport:
    """Averages every term over the full step on all ranks, then updates: 1 = N micro-batches = N ranks.

    If the loss or a gradient is not finite on any rank, or the step is empty, no rank updates: weights and
    optimizer state keep their bits. Weights of rows that may not be raise a `UserError` before the update.
    `empty` is the micro-batch that a rank runs while others have micro-batches left. `each`: gradients are reduced
    after every micro-batch, not only after the last. `now`: when the step is, for the terms.
    """
    facts = agree(ranks, step)
    counts = facts.counts
    if empty is not None:
        step = (*step, *[empty] * (facts.micro_batches - len(step)))
    sums: dict[str, Tensor] = {}
    measured: list[dict] = [{}, {}]  # totals and chance totals of the metrics
    bad_weights: dict[str, Tensor] = {}
    loss = torch.zeros((), device=device)
    optimizer.zero_grad(set_to_none=True)
    first = FirstPass.of(objective, step, device, now, ranks)
    for number, batch in enumerate(step, 1):
        set_grad_sync(objective, now=each or number == len(step), last=number == len(step))
        first.replay(number - 1)
        outcome = objective(batch.to(device), now, first.shares[number - 1])
        if metrics:
            found = objective.metric_sums(outcome, batch)
            measured = [sum_by_name(pair) for pair in zip(measured, found, strict=True)]
        bad_weights = sum_by_name((bad_weights, outcome.bad_weights))
        part = total(outcome.sums, weights, counts)
        part.backward()  # frees the gathered weights: the rank keeps only its shard
        loss += part.detach()
        for name, value in (outcome.sums | outcome.by_source).items():
            sums[name] = sums.get(name, 0) + value.detach()
    norm = _norm(objective, clip)
    # all ranks need the sums on the host before the update, because it depends on them
    report = _report(ranks, facts, loss, sums, [*measured, bad_weights], norm)
    for weigher in objective.weighers:
        if bad := report.bad_weights.get(weigher.name):
            got = f"{plural(int(bad), 'such weight')} in the step of {facts.rows} rows"
            raise plugin_calls.wrong_weights(weigher, got)
    if not any(counts[name] for name, weight in weights.items() if weight):
        dropped = facts.dropped | {EMPTY_STEP: 1}
        return replace(report, loss=None, grad_norm=None, dropped=dropped)
    if report.finite:
        optimizer.step()
    return report


def _report(
    ranks: Ranks, facts: Facts, loss: Tensor, sums: Mapping[str, Tensor], measured: list[dict], norm: Tensor
) -> StepReport:  # fmt: skip
    """Returns the report with sums over all ranks; `norm` already covers all ranks."""
    parts = ({"": loss}, sums, *measured)
    own = [{name: float(value) for name, value in part.items()} for part in parts]
    losses, terms, metrics, chance, bad = map(sum_by_name, zip(*ranks.gather(own), strict=True))
    counts = facts.counts
    return StepReport(
        loss=losses[""],
        terms={name: value / counts[name] if counts[name] else None for name, value in terms.items()},
        grad_norm=float(norm),
        tokens=facts.tokens,
        metrics={name: value / counts[name.split("/")[0]] for name, value in metrics.items()},
        chance={name: value / counts[name.split("/")[0]] for name, value in chance.items()},
        dropped=facts.dropped,
        bad_weights=bad,
    )


def _norm(objective: Objective, clip: float | None) -> Tensor:
    """Returns the norm of all gradients on all ranks. Scales them down to norm `clip`, if given."""
    trained = [p for p in objective.parameters() if p.grad is not None]
    return gather_full(torch.nn.utils.clip_grad_norm_(trained, math.inf if clip is None else clip))
