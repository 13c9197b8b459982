"""Calls into terms: needs, labels, counts, values, and what is logged."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from torch import Tensor, nn

from lmmkit.api.batch import Batch
from lmmkit.api.components import Loss, Reader, RowLoss, StepTerm, Term, TokenWeight
from lmmkit.api.ctx import Ctx, Metric
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import LogitsAt, Need, Select
from lmmkit.api.sample import Label, Sample
from lmmkit.plugin_calls.forms import FLOATS, NUMBER, wrong_names, wrong_need
from lmmkit.plugin_calls.guard import calling, returned, shown


def needs(term: Reader) -> tuple[Need, ...]:
    """Returns what a term reads from the model."""
    with calling(term.name, "needs", term):
        found: Any = term.needs
    if inspect.ismethod(found):
        raise returned(term.name, "needs", term, "a method", "a property: @property above it")
    if found == () and isinstance(term, Loss) and type(term).count is Loss.count:
        expected = "at least one need: its values are the items, unless `count` counts something else"
        raise returned(term.name, "needs", term, "an empty tuple", expected)
    if not isinstance(found, tuple) or not all(isinstance(need, get_args(Need)) for need in found):
        raise returned(term.name, "needs", term, shown(found), "a tuple of needs, such as (HiddenAt(...),)")
    for need in found:
        if wrong := wrong_need(need):
            raise returned(term.name, "needs", term, *wrong)
    with calling(term.name, "needs", term):
        hash(found)
    if isinstance(term, RowLoss) and not _of_rows(term, found):
        expected = "nothing else than the rows of `at`, a `Select`: leave `needs` out"
        raise returned(term.name, "needs", term, shown(found), expected)
    return found


def _of_rows(term: RowLoss, found: tuple[Need, ...]) -> bool:
    """Returns whether needs are the rows of `at`, and nothing else."""
    teacher = getattr(term, "teacher", "")
    return isinstance(term.at, Select) and found == (LogitsAt(term.at, teacher),) and isinstance(teacher, str)


def labels(loss: Loss | TokenWeight, sample: Sample, dims: Dims) -> Mapping[str, Label]:
    """Returns the labels that a loss gives to a sample. Their values are checked where they are joined."""
    with calling(loss.name, "labels", loss):
        found = loss.labels(sample, dims)
    _check_names(loss, "labels", found, "label", "keys to numbers or arrays")
    return found


def _check_names(owner: Reader, method: str, found: object, what: str, expected: str) -> None:
    """Raises an error for a result that is no mapping from names of a `what`. `expected`: what maps to what."""
    if not isinstance(found, Mapping):
        raise returned(owner.name, method, owner, shown(found), f"a mapping from {expected}")
    if wrong := wrong_names(found, what):
        raise returned(owner.name, method, owner, *wrong)


def count(term: Term, batch: Batch) -> int:
    """Returns the number of items that a term averages over; for one that does not add up, whether there are any:
    it averages over micro-batches."""
    with calling(term.name, "count", term):
        found = term.count(batch)
    if type(found) is not int or found < 0:
        raise returned(term.name, "count", term, shown(found), "a whole number (int), 0 or more")
    return found if term.additive else min(found, 1)


def value(term: Term, ctx: Ctx) -> Tensor:
    """Returns the sum of a term over its items."""
    with calling(term.name, "value", term):
        found = term.value(ctx)
    return _sum(term, "value", found, "the items")


def losses_of_rows(
    term: RowLoss, keys: Sequence[str], logits_CV: Tensor, target_C: Tensor, *beside: Tensor
) -> Tensor:
    """Returns the loss of each row of a chunk, [C]. `beside`: the logits of its teacher, if it has one, then the labels
    of `keys`."""
    teacher, labels = beside[: len(beside) - len(keys)], beside[len(beside) - len(keys) :]
    with calling(term.name, "rows", term):
        found = term.rows(logits_CV, target_C, *teacher, **dict(zip(keys, labels, strict=True)))
    fits = isinstance(found, Tensor) and found.dtype in FLOATS
    if not fits or found.shape != target_C.shape:
        raise returned(term.name, "rows", term, shown(found), f"{len(target_C)} losses in float32, one a row")
    return found


def embed(term: StepTerm, ctx: Ctx) -> Tensor:
    """Returns the items of a micro-batch, [n, ...]."""
    with calling(term.name, "embed", term):
        found = term.embed(ctx)
    wanted = ctx.batch.count[term.name]
    fits = isinstance(found, Tensor) and found.ndim and found.dtype in FLOATS
    if not fits or len(found) != wanted:
        expected = f"{wanted} rows in float32, as many as `count` says"
        raise returned(term.name, "embed", term, shown(found), expected)
    return found


def step_value(term: StepTerm, items: Tensor, module: nn.Module | None) -> Tensor:
    """Returns the sum of a term over all items of a step."""
    with calling(term.name, "step_value", term):
        found = term.step_value(items, module)
    return _sum(term, "step_value", found, "the items of the step")


def _sum(term: Term, method: str, found: object, items: str) -> Tensor:
    """Returns the result of a method. Raises an error if it is no sum over `items`."""
    if not isinstance(found, Tensor) or found.ndim or found.dtype not in FLOATS:
        raise returned(term.name, method, term, shown(found), f"a float32 scalar, the SUM over {items}")
    return found


def chance(term: Term, dims: Dims) -> float | None:
    """Returns the averaged value of a term at chance level, or None."""
    with calling(term.name, "chance", term):
        found = term.chance(dims)
    if found is not None and (type(found) not in (int, float) or not math.isfinite(found)):
        raise returned(term.name, "chance", term, shown(found), "a finite number, or None")
    return found


def metrics(term: Term, ctx: Ctx) -> Mapping[str, Metric]:
    """Returns the metrics of a term."""
    with calling(term.name, "metrics", term):
        found = term.metrics(ctx)
    _check_names(term, "metrics", found, "metric", "names to `Metric`")
    for key, metric in found.items():
        if not isinstance(metric, Metric):
            raise returned(term.name, "metrics", term, f"`{key}`: {shown(metric)}", "Metric(total, chance)")
        if not isinstance(metric.total, Tensor) or metric.total.ndim or metric.total.is_complex():
            got, expected = f"`{key}`: total {shown(metric.total)}", "a scalar tensor, the SUM over the items"
            raise returned(term.name, "metrics", term, got, expected)
        if (isinstance(metric.chance, Tensor) and metric.chance.ndim) or not isinstance(
            metric.chance, Tensor | NUMBER
        ):
            got, expected = f"`{key}`: chance {shown(metric.chance)}", "a number, the SUM over the items"
            raise returned(term.name, "metrics", term, got, expected)
    return found


def images(term: Term, ctx: Ctx) -> Mapping[str, Tensor]:
    """Returns the images of a term for TensorBoard."""
    with calling(term.name, "images", term):
        found = term.images(ctx)
    _check_names(term, "images", found, "image", "names to pixels")
    for key, pixels in found.items():
        fits = isinstance(pixels, Tensor) and pixels.ndim == 3 and len(pixels) == 3
        if not fits or not pixels.numel() or not pixels.is_floating_point():
            got = f"`{key}`: {shown(pixels)}"
            raise returned(term.name, "images", term, got, "preprocessed pixels [3, X, Y], not whole numbers")
    return found
