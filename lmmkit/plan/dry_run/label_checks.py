"""Checks of the labels that a loss gives to samples: pure, and of one type and form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from lmmkit import plugin_calls
from lmmkit.api.components import Loss, TokenWeight
from lmmkit.api.model_info import Dims
from lmmkit.api.sample import Label, Sample, View
from lmmkit.data.micro_batch.labels import join_labels
from lmmkit.errors import Problem, UserError
from lmmkit.errors.dry_run import IN_PLACE, NOT_PURE
from lmmkit.errors.plan import LABEL
from lmmkit.plan.dry_run.subject import Check, global_seed, problem


@dataclass(frozen=True)
class LabelSubject:
    """Holds a loss and the samples whose labels are made."""

    loss: Loss | TokenWeight
    samples: Sequence[Sample]
    dims: Dims


def pure_labels(subject: LabelSubject) -> Iterator[Problem]:
    """Makes the labels of each sample twice, with other global generators, from a copy of the sample."""
    loss, found = subject.loss, []
    for seed in range(2):
        copies = [replace(sample, meta=deepcopy(dict(sample.meta))) for sample in subject.samples]
        with global_seed(seed):
            found.append([_plain(plugin_calls.labels(loss, given, subject.dims)) for given in copies])
        if any(given.meta != sample.meta for given, sample in zip(copies, subject.samples, strict=True)):
            expected = "labels in a new mapping"
            yield problem(IN_PLACE, loss.name, "labels", loss, "`sample.meta` changed", expected=expected)
            return
    for sample, one, other in zip(subject.samples, *found, strict=True):
        if one != other:
            got, expected = (
                f"sample {sample.key}: {one}, then {other}"[:300],
                "labels from `sample` and `dims` alone",
            )
            yield problem(NOT_PURE, loss.name, "labels", loss, got, expected=expected)
            return


def _plain(labels: Mapping[str, Label]) -> dict[str, str]:
    return {key: plain_text(value) for key, value in labels.items()}


def plain_text(value: Label) -> str:
    """Returns a label as a text, so that NaN equals NaN; what is no label too."""
    if isinstance(value, Tensor):
        return repr(value.tolist())
    try:
        return repr(np.asarray(value).tolist())
    except ValueError:  # lists of unlike lengths
        return repr(value)


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
