"""Exact match of short answers after trimming, by question type, with controls."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from lmmkit.api.sample import Sample, View
from lmmkit.data.images import Blank
from lmmkit.evaluate.controls import blank, swapped
from lmmkit.evaluate.stats import mean_with_interval
from lmmkit.inference.chat_model import ChatModel


def exact_match(
    chat_model: ChatModel,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int,
    controls: Iterable[str],
    training: Iterable[Sample],
) -> dict:
    """Returns the accuracy on the last answer of every sample.

    Args:
        chat_model: the model.
        samples: each ends with the correct answer; `meta["type"]` and `meta["scene"]`, if given, name
            the question type and the cluster.
        max_new_tokens: maximum number of tokens of an answer.
        controls: `blank` and `swapped`, each the same questions with such images.
        training: the samples for the majority baseline.

    Returns:
        accuracy, accuracy_<control>, by_type, majority; each accuracy {value, low, high, n}.
    """
    spec = chat_model.prepared.dims.image
    asked = {"": list(samples)}
    for control in controls:
        made = (
            swapped(samples)
            if control == "swapped"
            else blank(samples, edit=Blank("mean", spec.mean, spec.std))
        )
        asked[f"_{control}"] = made
    right = {name: _right(chat_model, made, max_new_tokens) for name, made in asked.items()}
    clusters = [str(s.meta.get("scene", s.key)) for s in samples]
    results: dict = {f"accuracy{n}": mean_with_interval(r, clusters) for n, r in right.items()}
    results["by_type"] = {
        kind: {
            f"accuracy{name}": mean_with_interval([r[i] for i in members], [clusters[i] for i in members])
            for name, r in right.items()
        }
        for kind, members in _by_type(samples).items()
    }
    results["majority"] = _majority(samples, training)
    return results


def _right(chat_model: ChatModel, samples: Sequence[Sample], max_new_tokens: int) -> list[float]:
    views = [View(sample=replace(s, turns=s.turns[:-1])) for s in samples]
    groups = [list(g) for _, g in groupby(views, key=lambda view: view.sample.images)]
    answers = chat_model.answer(groups, max_new_tokens=max_new_tokens)
    return [float(a == s.turns[-1].text.strip()) for a, s in zip(answers, samples, strict=True)]


def _by_type(samples: Sequence[Sample]) -> dict[str, list[int]]:
    members = defaultdict(list)
    for i, sample in enumerate(samples):
        if "type" in sample.meta:
            members[str(sample.meta["type"])].append(i)
    return dict(sorted(members.items()))


def _majority(samples: Sequence[Sample], training: Iterable[Sample]) -> float:
    """Returns the accuracy of the most common training answer to the same question, else to any question."""
    by_question: dict[str, Counter] = defaultdict(Counter)
    overall: Counter = Counter()
    for sample in training:
        for question, answer in zip(sample.turns[::2], sample.turns[1::2], strict=False):
            by_question[question.text][answer.text] += 1
            overall[answer.text] += 1
    right = 0
    for sample in samples:
        known = by_question.get(sample.turns[-2].text) or overall
        right += bool(known) and known.most_common(1)[0][0] == sample.turns[-1].text
    return right / max(1, len(samples))
