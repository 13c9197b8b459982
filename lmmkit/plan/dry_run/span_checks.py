"""Checks of the weights that a plugin gives to characters of answers: pure, and sound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

from lmmkit import plugin_calls
from lmmkit.api.components import TokenWeight
from lmmkit.api.layout import CharWeight
from lmmkit.api.sample import Sample
from lmmkit.errors import Problem
from lmmkit.errors.dry_run import IN_PLACE, NOT_PURE
from lmmkit.plan.dry_run.subject import Check, global_seed, problem


@dataclass(frozen=True)
class SpanSubject:
    """Holds what weights characters, and the samples whose answers are weighted."""

    weigher: TokenWeight
    samples: Sequence[Sample]


def pure_spans(subject: SpanSubject) -> Iterator[Problem]:
    """Weights each answer twice, with other global generators, from a copy of the sample."""
    weigher, found = subject.weigher, []
    for seed in range(2):
        copies = [replace(sample, meta=deepcopy(dict(sample.meta))) for sample in subject.samples]
        with global_seed(seed):
            found.append([_of_answers(weigher, given) for given in copies])
        if any(given.meta != sample.meta for given, sample in zip(copies, subject.samples, strict=True)):
            got, expected = "`sample.meta` changed", "weights in a new list"
            yield problem(IN_PLACE, weigher.name, "spans", weigher, got, expected=expected)
            return
    for sample, one, other in zip(subject.samples, *found, strict=True):
        if one != other:
            got = f"sample {sample.key}: other weights in a second call"
            expected = "weights from `sample` and `text` alone"
            yield problem(NOT_PURE, weigher.name, "spans", weigher, got, expected=expected)
            return


def _of_answers(weigher: TokenWeight, sample: Sample) -> list[list[CharWeight]]:
    answers = [turn.text for turn in sample.turns if turn.role == "assistant" and turn.supervised]
    return [plugin_calls.spans(weigher, sample, text) for text in answers]


CHECKS: tuple[Check[SpanSubject], ...] = (pure_spans,)
