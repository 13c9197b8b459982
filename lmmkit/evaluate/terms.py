"""Every term of a stage on held-out data: its value and its metrics, each with its chance level."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from lmmkit.api.batch import Batch
from lmmkit.api.components import Term
from lmmkit.api.sample import Sample
from lmmkit.data.packing import SizedSample, read_images
from lmmkit.data.pipeline import cut
from lmmkit.data.sources.other_samples import SourceSamples
from lmmkit.data.views import dropped_text
from lmmkit.errors import Problem
from lmmkit.evaluate.keep import Keep
from lmmkit.evaluate.questions.puzzles_file import Puzzles, puzzle_facts
from lmmkit.evaluate.questions.questions_task import data_problems
from lmmkit.evaluate.task import Better, EvalTask, Figure
from lmmkit.inference.chat_model import ChatModel
from lmmkit.majority import Majority
from lmmkit.objective import Outcome, sum_by_name
from lmmkit.plan.stage_plan import StagePlan
from lmmkit.progress import counted
from lmmkit.recipe import Recipe

Sums = list[dict[str, float]]
"""Four mappings: sum and items by term, and total and chance total by "term/metric"."""


class Terms(EvalTask):
    """Measures the terms of the model's stage. Figures: "TERM" and "TERM/METRIC", averages over all items."""

    def problems(self, recipe: Recipe) -> list[Problem]:
        """Returns also a problem if there is no source."""
        return [*super().problems(recipe), *data_problems(self, recipe)]

    def run(
        self, chat_model: ChatModel, samples: Sequence[Sample], *,
        controls: Iterable[str] = (), baseline: Majority | None = None, keep: Keep | None = None,
    ) -> dict[str, Figure]:  # fmt: skip
        """Returns the averages, and keeps the puzzles of order tasks. The terms know their chance level; there are no
        controls."""
        puzzles = Puzzles(self.name, samples)
        dropped: Counter[str] = Counter()
        shown = counted("measuring terms", samples)
        among = SourceSamples.among(samples)
        parts = cut(laid_out(chat_model, shown, dropped, among), chat_model.prepared.recipe.speed.tokens)
        figures = averages(chat_model, term_sums(chat_model, parts, note=puzzles.add_outcome))
        if keep is not None:
            puzzles.write(keep, chat_model.stage)
        if dropped:
            print(f"note: evaluate.tasks.{self.name}: {dropped_text(dropped)}", file=sys.stderr)
        return figures

    def facts(self, keep: Keep) -> dict[str, Any]:
        """Returns the name of the file of puzzles, if there are any."""
        return puzzle_facts(keep.folder)

    def figures(self, plan: StagePlan) -> dict[str, Better]:
        """Returns the terms. A metric of a term does not state which values are better."""
        return dict.fromkeys(plan.weights, "lower")


def laid_out(
    chat_model: ChatModel, samples: Iterable[Sample], dropped: Counter[str], among: SourceSamples
) -> Iterator[SizedSample]:
    """Returns the samples, laid out for their first epoch. Counts in `dropped` what the length policy cuts or
    leaves out. `among`: the samples that views may ask for."""
    views = (chat_model.views.fitting(sample, 0, dropped, among) for sample in samples)
    return (chat_model.packer.sized(members) for members in views if members)


@torch.no_grad()
def term_sums(
    chat_model: ChatModel, parts: Iterable[Sequence[SizedSample]], *,
    note: Callable[[Sequence[Term], Outcome, Batch], None] = lambda terms, outcome, batch: None,
) -> Sums:  # fmt: skip
    """Returns the sums over micro-batches; some of these may be empty. `note` is called with each outcome."""
    objective = chat_model.objective
    sums: Sums = [{}, {}, {}, {}]
    for part in parts:
        chat_model.poll()
        batch, _ = chat_model.packer.pack(part, read_images(part, chat_model.reader))
        batch = batch.to(chat_model.device)
        outcome = objective(batch)
        note(objective.terms, outcome, batch)
        values, totals, chances = (
            {name: float(value) for name, value in each.items()}
            for each in (outcome.sums, *objective.metric_sums(outcome, batch))
        )
        found = (values, batch.count, totals, chances)
        sums = [sum_by_name(pair) for pair in zip(sums, found, strict=True)]
    return sums


def averages(chat_model: ChatModel, sums: Sums) -> dict[str, Figure]:
    """Returns the figures of all terms that have items."""
    values, counts, totals, chances = sums
    chance = chat_model.prepared.plans[chat_model.stage].chances(chat_model.prepared.dims)
    out = {}
    for term in (term for term in values if counts.get(term)):
        n = int(counts[term])
        out[term] = Figure(value=values[term] / n, chance=chance.get(term), n=n)
        for metric in (key for key in totals if key.startswith(f"{term}/")):
            out[metric] = Figure(value=totals[metric] / n, chance=chances[metric] / n, n=n)
    return out
