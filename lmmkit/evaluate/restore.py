"""Evaluation of tasks with a text loss: the task scores the text that the model generates greedily."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from lmmkit import plugin_calls
from lmmkit.api.sample import Sample, View
from lmmkit.data.sources.other_samples import SourceSamples
from lmmkit.evaluate.keep import Keep
from lmmkit.evaluate.questions.puzzles_file import Puzzles, puzzle_facts
from lmmkit.evaluate.questions.questions_task import MAX_NEW_TOKENS
from lmmkit.evaluate.task import Better, EvalTask, Figure
from lmmkit.inference.chat_model import ChatModel
from lmmkit.majority import Majority
from lmmkit.plan.stage_plan import StagePlan
from lmmkit.recipe import Control


class Restore(EvalTask):
    """Measures the text tasks in the model's stage. Figures: the mean score of each, by its name."""

    needs_data = True

    def run(
        self, chat_model: ChatModel, samples: Sequence[Sample], *,
        controls: Iterable[Control] = (), baseline: Majority | None = None, keep: Keep | None = None,
    ) -> dict[str, Figure]:  # fmt: skip
        """Returns the mean scores, and keeps the puzzles of order tasks. The task knows its chance level; there are no
        controls."""
        figures, puzzles = {}, Puzzles(self.name, samples)
        for task in chat_model.prepared.plans[chat_model.stage].tasks:
            if not task.text_loss:
                continue
            among = SourceSamples.among(samples)
            views = [v for s in samples for v in chat_model.views.of(s, 0, among) if v.name == task.name]
            prompts = [[_without_answer(view)] for view in views]
            texts = chat_model.answer(prompts, max_new_tokens=self.section.max_new_tokens or MAX_NEW_TOKENS)
            scores = [plugin_calls.score(task, view, text) for view, text in zip(views, texts, strict=True)]
            n = len(scores)
            value, chance = (sum(column) / n for column in zip(*scores, strict=True)) if n else (0.0, 0.0)
            figures[task.name] = Figure(value=value, chance=chance, n=n)
            for view, text in zip(views, texts, strict=True):
                if (puzzle := plugin_calls.text_puzzle(task, view, text)) is not None:
                    puzzles.add(task.name, view.sample.key, puzzle)
        if keep is not None:
            puzzles.write(keep, chat_model.stage)
        return figures

    def facts(self, keep: Keep) -> dict[str, Any]:
        """Returns the name of the file of puzzles, if there are any."""
        return puzzle_facts(keep.folder)

    def figures(self, plan: StagePlan) -> dict[str, Better]:
        """Returns the text tasks of the stage."""
        return {task.name: "higher" for task in plan.tasks if task.text_loss}


def _without_answer(view: View) -> View:
    return replace(view, sample=replace(view.sample, turns=view.sample.turns[:-1]))
