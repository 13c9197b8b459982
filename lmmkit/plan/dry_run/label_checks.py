"""Checks of the labels that a loss gives to samples: pure, and of one type and form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np

from lmmkit import plugin_calls
from lmmkit.api.components import Loss
from lmmkit.api.model_info import Dims
from lmmkit.api.sample import Label, Sample, View
from lmmkit.data.labels import join_labels
from lmmkit.errors import Problem, UserError
from lmmkit.errors.dry_run import IN_PLACE, NOT_PURE
from lmmkit.errors.plan import LABEL
from lmmkit.plan.dry_run.subject import Check, global_seed, problem


@dataclass(frozen=True)
class LabelSubject:
    """Holds a loss and the samples whose labels are made."""

    loss: Loss
    samples: Sequence[Sample]
    dims: Dims


def pure_labels(subject: LabelSubject) -> Iterator[Problem]:
    """Makes the labels of each sample twice, with other global generators, from a copy of the sample."""
    loss = subject.loss
    for i, sample in enumerate(subject.samples):
        found = []
        for call in range(2):
            given = replace(sample, meta=deepcopy(dict(sample.meta)))
            with global_seed(2 * i + call):
                found.append(_plain(plugin_calls.labels(loss, given, subject.dims)))
            if given.meta != sample.meta:
                expected = "labels in a new mapping"
                yield problem(IN_PLACE, loss.name, "labels", loss, "`sample.meta` changed", expected=expected)
                return
        if found[0] != found[1]:
            got = f"sample {sample.key}: {found[0]}, then {found[1]}"
            expected = "labels that depend on nothing but `sample` and `dims`"
            yield problem(NOT_PURE, loss.name, "labels", loss, got[:300], expected=expected)
            return


def _plain(labels: Mapping[str, Label]) -> dict[str, object]:
    return {key: np.asarray(value).tolist() for key, value in labels.items()}


def uniform_labels(subject: LabelSubject) -> Iterator[Problem]:
    """Finds labels that cannot be one tensor: of unlike types, or that only some samples have."""
    loss = subject.loss
    labels = [(sample, plugin_calls.labels(loss, sample, subject.dims)) for sample in subject.samples]
    try:
        join_labels(View(sample=sample, sample_labels={loss.name: found}) for sample, found in labels)
    except UserError as error:
        got = f"{error.problems[0].where}: {error.problems[0].got}"
        yield problem(LABEL, loss.name, "labels", loss, got)


CHECKS: tuple[Check[LabelSubject], ...] = (pure_labels, uniform_labels)
