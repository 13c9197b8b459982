"""Joins the labels of the views of a micro-batch: one tensor for each key, or a `Ragged`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lmmkit.api.batch import Ragged, RowGather
from lmmkit.api.sample import Label, View
from lmmkit.errors import Problem, UserError
from lmmkit.errors.plan import LABEL
from lmmkit.progress import plural

_DTYPES = {"b": np.bool_, "i": np.int64, "u": np.int64, "f": np.float32}  # by kind of dtype


def join_labels(views: Iterable[View]) -> dict[str, Tensor | Ragged]:
    """Returns the labels of these views by "instance/key": those of a task have a row for each of its views,
    those of a loss a row for each of all views.

    Raises `UserError` for values that are no numbers, of unlike types or shapes, or that some views lack.
    """
    rows: dict[str, list[tuple[str, Mapping[str, Label]]]] = {}
    for view in views:
        for owner, labels in ((view.name, view.labels), *view.sample_labels.items()):
            rows.setdefault(owner, []).append((view.sample.key, labels))
    return {
        f"{owner}/{key}": _joined(f"plugin `{owner}`, label `{key}`", key, found)
        for owner, found in rows.items()
        for key in dict.fromkeys(key for _, labels in found for key in labels)
    }


def item_labels(
    name: str, labels: Mapping[str, Tensor | Ragged], gather: RowGather, views: Sequence[tuple[str, str]]
) -> dict[str, Tensor]:
    """Returns the labels of instance `name` with a value for each item of a need, in order: that of its sample, or of
    a list with one value for each item of a view, its own.

    Raises `UserError` for a list of another length. `views`: the name and the sample of each view of the batch.
    """
    found, view_Q = {}, gather.view_Q
    count_V = torch.bincount(view_Q, minlength=len(views))
    place_Q = torch.arange(len(view_Q)) - (count_V.cumsum(0) - count_V)[view_Q]
    for key, label in labels.items():
        if key.partition("/")[0] != name:
            continue
        if isinstance(label, Tensor) and label.ndim == 1:
            found[key] = label[view_Q]
            continue
        flat, size_V = _flat(label, len(views))
        wrong = (count_V > 0) & (size_V != count_V)
        if wrong.any():
            v = int(wrong.nonzero()[0])
            given, read = plural(int(size_V[v]), "value"), plural(int(count_V[v]), "row")
            got = f"{given}, and {read} of view `{views[v][0]}` that `at` selects"
            raise UserError(_wrong(f"plugin `{name}`, label `{key.partition('/')[2]}`", views[v][1], got))
        found[key] = flat[(size_V.cumsum(0) - size_V)[view_Q] + place_Q]
    return found


def _flat(label: Tensor | Ragged, views: int) -> tuple[Tensor, Tensor]:
    """Returns all values of a label, one after the other, and how many each view has."""
    if isinstance(label, Ragged):
        return label.flat, torch.bincount(label.view_N, minlength=views)
    return label.flatten(0, 1), torch.full((views,), label.shape[1])


def _joined(where: str, key: str, rows: Sequence[tuple[str, Mapping[str, Label]]]) -> Tensor | Ragged:
    values = [_tensor(where, sample, labels[key]) for sample, labels in rows if key in labels]
    if len(values) < len(rows):
        lacking = next(sample for sample, labels in rows if key not in labels)
        raise UserError(_wrong(where, lacking, "no value, and other views have one"))
    first, sample = values[0], rows[0][0]
    for value, (other, _) in zip(values, rows, strict=True):
        if value.dtype != first.dtype:
            raise UserError(_wrong(where, other, f"{_kind(value)} beside {_kind(first)} (sample {sample})"))
        if value.ndim != first.ndim or value.shape[1:] != first.shape[1:]:
            shapes = f"shape {list(value.shape)} beside {list(first.shape)} (sample {sample})"
            raise UserError(_wrong(where, other, shapes))
    if all(value.shape == first.shape for value in values):
        return torch.stack(values)
    sizes = torch.tensor([len(value) for value in values])
    return Ragged(torch.cat(values), torch.arange(len(values)).repeat_interleave(sizes))


def _tensor(where: str, sample: str, value: Label) -> Tensor:
    """Returns a label as a tensor of bool, int64 or float32."""
    try:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except (TypeError, ValueError):  # bfloat16; lists of unlike lengths
        array = np.asarray(None)
    if array.dtype.kind not in _DTYPES:
        raise UserError(_wrong(where, sample, f"{type(value).__name__} {str(value)[:60]}"))
    return torch.from_numpy(array.astype(_DTYPES[array.dtype.kind]))


def _wrong(where: str, sample: str, got: str) -> Problem:
    return LABEL.at(f"{where}, sample {sample}", got=got)


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
