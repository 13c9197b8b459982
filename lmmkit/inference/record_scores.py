"""Log-probabilities of records by a model, stored in the records for terms that compare with them later."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lmmkit.api.components import Ctx, Loss
from lmmkit.api.needs import LogProb
from lmmkit.data.packing import Packer, SizedSample, read_images
from lmmkit.data.pipeline import Pipeline, cut
from lmmkit.data.sources.llava_json import JsonRecords
from lmmkit.errors import UserError
from lmmkit.errors.commands import NO_SCORES
from lmmkit.objective import Objective
from lmmkit.plan.prepare import Prepared
from lmmkit.progress import counted


@dataclass(frozen=True, kw_only=True)
class _Scores(Loss):
    """Reads log-probabilities, and adds nothing."""

    read: tuple[LogProb, ...]

    @property
    def needs(self) -> tuple[LogProb, ...]:
        return self.read

    def count(self, batch) -> int:
        return 0


def score_names(prepared: Prepared, stage: str) -> dict[str, LogProb]:
    """Returns the log-probabilities that the terms of a stage read, of the trained model, by the names under which
    they are stored: "logp_VIEW" or "logp_VIEW_ROLE", and numbered from the second selection of one view on.

    Raises `UserError` if there are none, or if a source of the stage is not a file of records.
    """
    names: dict[str, LogProb] = {}
    for select in dict.fromkeys(n.at for n in prepared.plans[stage].needs if isinstance(n, LogProb)):
        name = "_".join(["logp", select.view, *filter(None, [select.view_role])])
        same = sum(other == name or other.startswith(f"{name}__") for other in names)
        names[f"{name}__{same + 1}" if same else name] = LogProb(select)
    where = prepared.recipe.where(f"stages.{stage}")
    asking = [maker.name for maker in prepared.plans[stage].makers if maker.others == "step"]
    if asking:
        got = f"views of {', '.join(asking)} from other samples of a step, which a record alone does not have"
        raise UserError(NO_SCORES.at(where, got=got))
    if not names:
        raise UserError(NO_SCORES.at(where, got="terms that read no log-probabilities"))
    for source in prepared.recipe.stages[stage].data:
        if not isinstance(prepared.sources[source].indexed, JsonRecords):
            raise UserError(NO_SCORES.at(prepared.recipe.where(f"data.{source}"), got=f"shards in {source}"))
    return names


@torch.no_grad()
def scored_records(
    prepared: Prepared, stage: str, objective: Objective, device: torch.device, dropped: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yields the records of a stage's sources with the sums of their log-probabilities, in order.

    The views are those of the first epoch. A record of which no view fits is left out, and counted in `dropped`.
    """
    names = score_names(prepared, stage)
    needs = tuple(dict.fromkeys(names.values()))
    term = _Scores(name="scores", read=needs)
    packer, pipeline = replace(prepared.packer(stage), needs=needs, terms=(term,)), prepared.pipeline(stage)
    objective.terms, objective.weighers, objective.references = (term,), (), ()
    objective.eval()
    for source in prepared.recipe.stages[stage].data:
        records, numbers = prepared.sources[source], deque[int]()
        for part in cut(_sized(pipeline, packer, source, numbers, dropped), prepared.recipe.speed.tokens):
            batch, _ = packer.pack(part, read_images(part, pipeline.reader))
            ctx = objective(batch.to(device)).ctxs[term.name]
            for scores in _by_record(ctx, names, len(part)):
                value = records.indexed.record(numbers.popleft()).value
                assert isinstance(value, dict), "the index lists only good records"
                yield {**value, **scores}


def _sized(
    pipeline: Pipeline, packer: Packer, source: str, numbers: deque[int], dropped: Counter[str]
) -> Iterator[SizedSample]:
    """Yields the samples of a source of which some view fits, and appends their numbers to `numbers`."""
    records = pipeline.sources[source]
    for number in counted(f"scoring {source}", range(len(records))):
        sample = records[number]
        if members := pipeline.views.fitting(sample, 0, dropped, pipeline.other_samples(source, 0)):
            numbers.append(number)
            yield packer.sized(members, source)


def _by_record(ctx: Ctx, names: Mapping[str, LogProb], count: int) -> list[dict[str, float]]:
    """Returns the sums of each of `count` samples by their names, those that it has."""
    found: list[dict[str, float]] = [{} for _ in range(count)]
    for name, need in names.items():
        (sum_N,) = ctx.by_sample(need)
        having = sorted(set(ctx.batch.item_samples(need).tolist()))
        for number, value in zip(having, sum_N.tolist(), strict=True):
            found[number][name] = value
    return found
