"""Evaluation of tasks with a text loss: the task scores the text that the model generates greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lmmkit.api.sample import Sample
from lmmkit.inference.chat_model import ChatModel


def restore(chat_model: ChatModel, samples: Sequence[Sample], *, max_new_tokens: int) -> dict:
    """Returns {task: {value, chance, n}}: the mean score of every text task in the model's stage."""
    results = {}
    for task in chat_model.prepared.plans[chat_model.stage].tasks:
        if not task.text_loss:
            continue
        views = [v for s in samples for v in chat_model.views.of(s, 0) if v.name == task.name]
        prompts = [[replace(v, sample=_question(v.sample))] for v in views]
        texts = chat_model.answer(prompts, max_new_tokens=max_new_tokens)
        scored = [task.score(view, text) for view, text in zip(views, texts, strict=True)]
        n = max(1, len(scored))
        value, chance = (sum(column) / n for column in zip(*scored, strict=True)) if scored else (0.0, 0.0)
        results[task.name] = {"value": value, "chance": chance, "n": len(scored)}
    return results


def _question(sample: Sample) -> Sample:
    return replace(sample, turns=sample.turns[:-1])
