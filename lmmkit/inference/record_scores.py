"""Log-probabilities of records by a model, stored in the records for terms that compare with them later."""

from __future__ import annotations

import base64
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmmkit.api.components import Loss
from lmmkit.api.ctx import Ctx
from lmmkit.api.needs import LogitsAt, LogProb, Select
from lmmkit.data.micro_batch.laid_out import SizedSample
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.data.packing import Packer
from lmmkit.data.pipeline import Pipeline, cut
from lmmkit.data.sources.llava_json import JsonRecords
from lmmkit.errors import UserError
from lmmkit.errors.commands import NO_SCORES
from lmmkit.model.cross_entropy import top_log_probs
from lmmkit.objective import Objective
from lmmkit.plan.prepare import Prepared
from lmmkit.progress import counted

ANSWERS = LogitsAt(Select())  # the rows of the main view whose likeliest tokens are stored


@dataclass(frozen=True, kw_only=True)
class _Scores(Loss):
    """Reads log-probabilities, and adds nothing."""

    read: tuple[LogProb | LogitsAt, ...]

    @property
    def needs(self) -> tuple[LogProb | LogitsAt, ...]:
        return self.read

    def count(self, batch) -> int:
        return 0


def score_names(prepared: Prepared, stage: str, top_k: int = 0) -> dict[str, LogProb]:
    """Returns the log-probabilities that the terms of a stage read, of the trained model, by the names under which
    they are stored: "logp_VIEW" or "logp_VIEW_ROLE", and numbered from the second selection of one view on.

    Raises `UserError` if there are none and no likeliest tokens are asked for (`top_k`) or too many, or if a source of
    the stage is not a file of records.
    """
    names: dict[str, LogProb] = {}
    for select in dict.fromkeys(n.at for n in prepared.plans[stage].needs if isinstance(n, LogProb)):
        name = "_".join(["logp", select.view, *filter(None, [select.view_role])])
        same = sum(other == name or other.startswith(f"{name}__") for other in names)
        names[f"{name}__{same + 1}" if same else name] = LogProb(select)
    where = prepared.recipe.where(f"stages.{stage}")
    asking = [maker.name for maker in prepared.plans[stage].makers if maker.others == "step"]
    if asking and names:
        got = f"views of {', '.join(asking)} from other samples of a step, which a record alone does not have"
        raise UserError(NO_SCORES.at(where, got=got))
    if not names and not top_k:
        raise UserError(NO_SCORES.at(where, got="terms that read no log-probabilities"))
    if top_k >= prepared.dims.vocab:
        raise UserError(NO_SCORES.at("--top-k", got=f"{top_k} of {prepared.dims.vocab} tokens"))
    for source in prepared.recipe.stages[stage].data:
        if type(prepared.sources[source].indexed) is not JsonRecords:
            raise UserError(
                NO_SCORES.at(prepared.recipe.where(f"data.{source}"), got=f"shards or tables in {source}")
            )
    return names


@torch.no_grad()
def scored_records(
    prepared: Prepared, stage: str, objective: Objective, device: torch.device, dropped: Counter[str],
    top_k: int = 0,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yields the records of a stage's sources with the sums of their log-probabilities, in order. `top_k`: how many of
    the likeliest tokens of each supervised row they get too, as `stored_rows` writes them.

    The views are those of the first epoch. A record of which no view fits is left out, and counted in `dropped`.
    """
    names = score_names(prepared, stage, top_k)
    needs = (*dict.fromkeys(names.values()), *([ANSWERS] if top_k else []))
    term = _Scores(name="scores", read=needs)
    packer, pipeline = replace(prepared.packer(stage), needs=needs, terms=(term,)), prepared.pipeline(stage)
    objective.terms, objective.weighers, objective.references = (term,), (), ()
    objective.eval()
    for source in prepared.recipe.stages[stage].data:
        records, numbers = prepared.sources[source], deque[int]()
        for part in cut(_sized(pipeline, packer, source, numbers, dropped), prepared.recipe.speed.tokens):
            batch, _ = packer.pack(part, read_images(part, pipeline.reader))
            ctx = objective(batch.to(device)).ctxs[term.name]
            found = _by_record(ctx, names, len(part))
            if top_k:
                _add_top(found, ctx, objective.lmm.decoder.head.weight, top_k)
            for scores in found:
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


def _add_top(found: list[dict[str, Any]], ctx: Ctx, weight_VD: Tensor, k: int) -> None:
    """Adds the k likeliest tokens of each supervised row of each sample."""
    token_QK, logp_QK = (each.cpu().numpy() for each in top_log_probs(ctx[ANSWERS], weight_VD, k))
    sample_Q = ctx.batch.item_samples(ANSWERS)
    for number, scores in enumerate(found):
        scores["top_k"] = stored_rows(token_QK[sample_Q == number], logp_QK[sample_Q == number])


def stored_rows(token_QK: np.ndarray, logp_QK: np.ndarray) -> str:
    """Returns tokens and their log-probabilities as text: K, a blank, and base64 of little-endian numbers, for each
    row K int32 ids and then K float32 log-probabilities."""
    both = np.concatenate([token_QK.astype("<i4"), logp_QK.astype("<f4").view("<i4")], 1)
    return f"{token_QK.shape[1]} {base64.b64encode(both.tobytes()).decode()}"


def _by_record(ctx: Ctx, names: Mapping[str, LogProb], count: int) -> list[dict[str, Any]]:
    """Returns the sums of each of `count` samples by their names, those that it has."""
    found: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, need in names.items():
        (sum_N,) = ctx.by_sample(need)
        having = sorted(set(ctx.batch.item_samples(need).tolist()))
        for number, value in zip(having, sum_N.tolist(), strict=True):
            found[number][name] = value
    return found
