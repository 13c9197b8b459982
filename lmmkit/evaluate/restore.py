"""Tasks that learn text, judged by what the model writes: greedy text against the task's score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lmmkit.api.sample import Sample
from lmmkit.inference.chat_model import Speaker


def restore(speaker: Speaker, samples: Sequence[Sample], *, new: int) -> dict:
    """{task: {value, chance, n}}: the mean score of every text task of the speaker's stage."""
    results = {}
    for task in speaker.prepared.plans[speaker.stage].tasks:
        if not task.learns_text:
            continue
        views = [v for s in samples for v in speaker.views.of(s, 0) if v.name == task.name]
        prompts = [[replace(v, sample=_question(v.sample))] for v in views]
        texts = speaker.answer(prompts, new=new)
        scored = [task.score(view, text) for view, text in zip(views, texts, strict=True)]
        n = max(1, len(scored))
        value, chance = (sum(column) / n for column in zip(*scored, strict=True)) if scored else (0.0, 0.0)
        results[task.name] = {"value": value, "chance": chance, "n": len(scored)}
    return results


def _question(sample: Sample) -> Sample:
    return replace(sample, turns=sample.turns[:-1])
