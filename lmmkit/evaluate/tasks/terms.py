"""Every term of a stage on held-out data: its value and its readings, each beside chance."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import torch

from lmmkit.data.pack import Tree
from lmmkit.data.pipeline import cut
from lmmkit.sample import Sample
from lmmkit.speak import Speaker


def terms(speaker: Speaker, samples: Iterable[Sample]) -> dict:
    """{term: {value, chance, n, readings: {name: {value, chance, n}}}}, averaged over all items."""
    return measured(speaker, laid_out(speaker, samples))


def laid_out(speaker: Speaker, samples: Iterable[Sample]) -> Iterator[Tree]:
    """The samples as they train in their first epoch; those that the length policy drops are left out."""
    dropped: Counter[str] = Counter()
    return (speaker.packer.tree(m) for s in samples if (m := speaker.views.fitting(s, 0, dropped)))


@torch.no_grad()
def measured(speaker: Speaker, trees: Iterable[Tree]) -> dict:
    """As `terms`, of samples that are laid out."""
    prepared, objective = speaker.prepared, speaker.objective
    sums: dict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    readings: dict[str, dict[str, list[float]]] = {}
    for part in cut(trees, prepared.recipe.speed.tokens):
        speaker.poll()
        batch, _ = speaker.packer.pack(part)
        outcome = objective(batch.to(speaker.device))
        counts.update(batch.count)
        for name, value in outcome.sums.items():
            sums[name] += float(value)
        for term in objective.terms:
            for name, reading in term.readings(outcome.ctxs[term.name]).items():
                both = readings.setdefault(term.name, {}).setdefault(name, [0.0, 0.0])
                both[0] += float(reading.total)
                both[1] += float(reading.chance)
    chance = prepared.plans[speaker.stage].chances(prepared.dims)
    return {
        name: {
            "value": sums[name] / counts[name], "chance": chance.get(name), "n": counts[name],
            "readings": {
                key: {"value": total / counts[name], "chance": by_chance / counts[name], "n": counts[name]}
                for key, (total, by_chance) in readings.get(name, {}).items()
            },
        }
        for name in sums if counts[name]
    }  # fmt: skip
