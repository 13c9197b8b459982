"""Every term of a stage on held-out data: its value and its metrics, each with its chance level."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch

from lmmkit.api.sample import Sample
from lmmkit.data.packing import SizedSample, read_images
from lmmkit.data.pipeline import cut
from lmmkit.inference.chat_model import ChatModel

Sums = list[dict[str, float]]
"""Four mappings: sum and items by term, and total and chance total by "term/metric"."""


def terms(chat_model: ChatModel, samples: Iterable[Sample]) -> dict:
    """Returns {term: {value, chance, n, metrics: {name: {value, chance, n}}}}, averaged over all items."""
    parts = cut(laid_out(chat_model, samples), chat_model.prepared.recipe.speed.tokens)
    return averaged(chat_model, summed(chat_model, parts))


def laid_out(chat_model: ChatModel, samples: Iterable[Sample]) -> Iterator[SizedSample]:
    """Returns the samples, laid out for their first epoch, without those that the length policy drops."""
    dropped: Counter[str] = Counter()
    return (chat_model.packer.sized(m) for s in samples if (m := chat_model.views.fitting(s, 0, dropped)))


@torch.no_grad()
def summed(chat_model: ChatModel, parts: Iterable[Sequence[SizedSample]]) -> Sums:
    """Returns the sums over micro-batches; some of these may be empty."""
    objective = chat_model.objective
    counts: Counter[str] = Counter()
    sums, totals, chances = (defaultdict[str, float](float) for _ in range(3))
    for part in parts:
        chat_model.poll()
        batch, _ = chat_model.packer.pack(part, read_images(part, chat_model.reader))
        outcome = objective(batch.to(chat_model.device))
        counts.update(batch.count)
        for name, value in outcome.sums.items():
            sums[name] += float(value)
        for term in (term for term in objective.terms if batch.count[term.name]):
            for name, reading in term.metrics(outcome.ctxs[term.name]).items():
                totals[f"{term.name}/{name}"] += float(reading.total)
                chances[f"{term.name}/{name}"] += float(reading.chance)
    return [dict(each) for each in (sums, counts, totals, chances)]


def averaged(chat_model: ChatModel, found: Sums) -> dict:
    """Returns the result of `terms` from sums."""
    sums, counts, totals, chances = found
    chance = chat_model.prepared.plans[chat_model.stage].chances(chat_model.prepared.dims)
    out = {
        name: {"value": sums[name] / n, "chance": chance.get(name), "n": n, "metrics": {}}
        for name in sums if (n := counts[name])
    }  # fmt: skip
    for key, total in totals.items():
        name, _, reading = key.partition("/")
        n = counts[name]
        out[name]["metrics"][reading] = {"value": total / n, "chance": chances[key] / n, "n": n}
    return out
