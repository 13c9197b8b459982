"""Every term of a stage on held-out data: its value and its metrics, each with its chance level."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lmmkit import plugin_calls
from lmmkit.api.components import StepTerm, Term
from lmmkit.api.sample import Sample
from lmmkit.data.micro_batch.laid_out import SizedSample
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.data.pipeline import cut
from lmmkit.data.sources.other_samples import SourceSamples
from lmmkit.data.views import dropped_text
from lmmkit.evaluate.keep import Keep
from lmmkit.evaluate.questions.puzzles_file import Puzzles, puzzle_facts
from lmmkit.evaluate.task import Better, EvalTask, Figure
from lmmkit.inference.chat_model import ChatModel
from lmmkit.majority import Majority
from lmmkit.model.step_terms import GatherRows, all_items, items_of
from lmmkit.objective import Outcome, divisors, sum_by_name
from lmmkit.plan.stage_plan import StagePlan
from lmmkit.progress import counted, working
from lmmkit.recipe import Control

Sums = list[dict[str, Any]]
"""Four mappings: sum and items by term, and total and chance total by "term/metric"."""


def _alone(rows: Tensor | None) -> tuple[Tensor | None, int]:
    return rows, 0


class Terms(EvalTask):
    """Measures the terms of the model's stage. Figures: "TERM" and "TERM/METRIC", averages over all items."""

    needs_data = True

    def run(
        self, chat_model: ChatModel, samples: Sequence[Sample], *,
        controls: Iterable[Control] = (), baseline: Majority | None = None, keep: Keep | None = None,
    ) -> dict[str, Figure]:  # fmt: skip
        """Returns the averages, and keeps the puzzles of order tasks. The terms know their chance level; there are no
        controls."""
        puzzles = Puzzles(self.name, samples)
        dropped: Counter[str] = Counter()
        shown = counted("laying samples out", samples)
        among = SourceSamples.among(samples)
        blocks = step_blocks(chat_model, shown, dropped, among)
        figures = averages(chat_model, term_sums(chat_model, blocks, note=puzzles.add_outcome))
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


def step_blocks(
    chat_model: ChatModel, samples: Iterable[Sample], dropped: Counter[str], among: SourceSamples,
    rank: int = 0, world: int = 1,
) -> list[list[Sequence[SizedSample]]]:  # fmt: skip
    """Returns the micro-batches of samples in blocks, within which terms over a step are computed.

    A block has as many samples as a step of the stage, of all ranks together, so that the figures compare with
    training's. `samples`: those of this rank, every `world`-th from `rank`. Without such terms there is one block.
    """
    recipe, blocks = chat_model.prepared.recipe, [samples]
    if _step_terms(chat_model):
        own, each = list(samples), recipe.stages[chat_model.stage].batch.samples
        step_of = [(rank + i * world) // each for i in range(len(own))]
        blocks = [
            [sample for sample, step in zip(own, step_of, strict=True) if step == number]
            for number in range(step_of[-1] + 1 if own else 0)
        ]
    return [list(cut(laid_out(chat_model, block, dropped, among), recipe.speed.tokens)) for block in blocks]


@torch.no_grad()
def term_sums(
    chat_model: ChatModel, blocks: Sequence[Sequence[Sequence[SizedSample]]], gather: GatherRows = _alone,
    world: int = 1, note: Callable[[Sequence[Term], Outcome], None] = lambda terms, outcome: None,
) -> Sums:  # fmt: skip
    """Returns the sums over micro-batches; some of these may be empty. `note` is called with each outcome. `gather`
    exchanges the items of terms over a step between `world` ranks, which then have equally many blocks."""
    sums: Sums = [{}, {}, {}, {}]
    done, samples = 0, sum(len(part) for block in blocks for part in block)
    with working("measuring terms", samples, "samples") as move:
        for block in blocks:
            items: dict[str, list[Tensor | None]] = {term.name: [] for term in _step_terms(chat_model)}
            for part in block:
                chat_model.poll()
                outcome, found = _part_sums(chat_model, part)
                note(chat_model.objective.terms, outcome)
                sums = [sum_by_name(pair) for pair in zip(sums, found, strict=True)]
                for term in _step_terms(chat_model):
                    items[term.name].append(items_of(term, outcome.ctxs[term.name]))
                move(done := done + len(part))
            for term in _step_terms(chat_model):
                every, _ = gather(all_items(items[term.name]))
                if every is not None:
                    value = plugin_calls.step_value(term, every, chat_model.objective.module_of(term))
                    sums[0][term.name] += float(value) / world
    return sums


def _part_sums(chat_model: ChatModel, part: Sequence[SizedSample]) -> tuple[Outcome, Sums]:
    objective = chat_model.objective
    batch, _ = chat_model.packer.pack(part, read_images(part, chat_model.reader))
    outcome = objective(batch.to(chat_model.device))
    for weigher in objective.weighers:
        if bad := int(outcome.bad_weights.get(weigher.name, 0)):
            raise plugin_calls.wrong_weights(weigher, f"{bad} such weights of {batch.count['next_token']}")
    values, totals, chances = (
        {name: float(value) for name, value in each.items()}
        for each in (outcome.sums, *objective.metric_sums(outcome, batch))
    )
    return outcome, [values, dict(batch.count), totals, chances]


def _step_terms(chat_model: ChatModel) -> list[StepTerm]:
    return [term for term in chat_model.objective.terms if isinstance(term, StepTerm)]


def averages(chat_model: ChatModel, sums: Sums) -> dict[str, Figure]:
    """Returns the figures of all terms that have items."""
    values, counts, totals, chances = sums
    chance = chat_model.prepared.plans[chat_model.stage].chances(chat_model.prepared.dims)
    out = {}
    by = divisors(counts)
    for term in (term for term in values if by.get(term)):
        n = int(counts[term])
        out[term] = Figure(value=values[term] / by[term], chance=chance.get(term), n=n)
        for metric in (key for key in totals if key.startswith(f"{term}/")):
            out[metric] = Figure(value=totals[metric] / n, chance=chances[metric] / n, n=n)
    return out
