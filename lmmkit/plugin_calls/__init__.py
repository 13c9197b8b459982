"""The calls of lmmkit into components: each method with the guard, and with a check of what it returns.

Everything that calls a component calls it here, so a fault of a plugin names instance, method, file and line
in a check, in training, in data workers and in evaluation.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lmmkit.api.components import (
    AuxTask,
    Component,
    ImageReducer,
    Loss,
    OtherSamples,
    Reader,
    RowLoss,
    StepTerm,
    Term,
    TokenStrategy,
    TokenWeight,
    ViewMaker,
)
from lmmkit.api.ctx import Ctx, Metric
from lmmkit.api.layout import CharWeight, Insert, InsertAt
from lmmkit.api.needs import LogitsAt, Need, Select
from lmmkit.api.puzzle import Puzzle
from lmmkit.api.sample import ImageEdit, Label, Sample, View
from lmmkit.errors import UserError
from lmmkit.errors.dry_run import WEIGHTS
from lmmkit.errors.plan import INSERT
from lmmkit.plugin_calls.forms import wrong_names, wrong_need, wrong_view
from lmmkit.plugin_calls.guard import calling, place_of, returned, shown

if TYPE_CHECKING:
    from lmmkit.api.batch import Batch
    from lmmkit.api.model_info import Dims

NUMBER = bool | int | float | np.bool_ | np.integer | np.floating


def check(component: Component, dims: Dims) -> str:
    """Returns which settings of a component do not fit the model; empty if all do."""
    with calling(component.name, "check", component):
        found = component.check(dims)
    if not isinstance(found, str):
        raise returned(component.name, "check", component, shown(found), "a text, empty if all settings fit")
    return found


def modules(component: Component, dims: Dims) -> nn.Module | None:
    """Returns the module of a component."""
    with calling(component.name, "modules", component):
        found = component.modules(dims)
    if not isinstance(found, nn.Module | None):
        raise returned(component.name, "modules", component, shown(found), "an nn.Module or None")
    for name, parameter in found.named_parameters() if found is not None else ():
        if not parameter.ndim:
            got = f"a module whose parameter `{name}` has no dimension"
            raise returned(component.name, "modules", component, got, "a shape of [1], which ranks can share")
    return found


def reset(name: str, part: nn.Module, fill: Callable[[], object]) -> None:
    """Calls `fill`, the `reset_parameters` of a module of a plugin."""
    with calling(name, "reset_parameters", part):
        fill()


def tokens(name: str, module: nn.Module, width: int, owner: object = None) -> Tensor:
    """Returns the embeddings of learned tokens, [n, D]. `owner`: the strategy, if it is at hand."""
    with calling(name, "forward", owner or module):
        found = module()
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != width:
        raise returned(name, "forward", owner or module, shown(found), f"embeddings [n, {width}]")
    return found


def provides(strategy: TokenStrategy) -> tuple[str, ...]:
    """Returns the names of the tokens of a strategy."""
    found: Any = strategy.provides
    if not isinstance(found, tuple | list) or not all(isinstance(name, str) and name for name in found):
        raise returned(
            strategy.name, "provides", strategy, shown(found), 'a tuple of names, such as ("drt",)'
        )
    return tuple(found)


def edit(strategy: TokenStrategy, view: View) -> Sequence[Insert]:
    """Returns where a token strategy inserts into a view."""
    name = strategy.name
    with calling(name, "edit", strategy):
        found = strategy.edit(view)
    if not isinstance(found, list | tuple) or not all(isinstance(each, Insert) for each in found):
        raise returned(name, "edit", strategy, shown(found), "a list of Insert")
    places = get_args(InsertAt)
    for each in found:
        unknown = each.at not in places or each.token_name not in provides(strategy)
        unfit = (each.at == "after_token") != isinstance(each.token, str)
        if unknown or unfit or not _rows(each.n):
            where = f"{name}.edit, {place_of(strategy, 'edit')}"
            raise UserError(INSERT.at(where, got=f"{each}", positions=", ".join(places)))
    return found


def _rows(n: object) -> bool:
    return type(n) is int and n >= 1


def views(task: ViewMaker, sample: Sample, rng: np.random.Generator, others: OtherSamples) -> Sequence[View]:
    """Returns the views of a task, which gets `others` if it asks for them."""
    if not isinstance(task.roles, tuple | list):
        raise returned(task.name, "roles", task, shown(task.roles), "a tuple of texts")
    more = () if task.others == "none" else (others,)
    with calling(task.name, "views", task):
        found = task.views(sample, rng, *more)
    if not isinstance(found, list | tuple):
        raise returned(task.name, "views", task, shown(found), "a list of View")
    for view in found:
        if wrong := wrong_view(view):
            raise returned(task.name, "views", task, *wrong)
    return found


def labels(loss: Loss | TokenWeight, sample: Sample, dims: Dims) -> Mapping[str, Label]:
    """Returns the labels that a loss gives to a sample. Their values are checked where they are joined."""
    with calling(loss.name, "labels", loss):
        found = loss.labels(sample, dims)
    if not isinstance(found, Mapping):
        raise returned(loss.name, "labels", loss, shown(found), "a mapping from keys to numbers or arrays")
    if wrong := wrong_names(found, "label"):
        raise returned(loss.name, "labels", loss, *wrong)
    return found


def edited(name: str, change: ImageEdit, pixels_CXY: Tensor) -> Tensor:
    """Returns the pixels of an image after the edit that a task has given it."""
    with calling(name, "edit of an image", change):
        found = change(pixels_CXY)
    fits = isinstance(found, Tensor) and found.shape == pixels_CXY.shape and found.dtype == pixels_CXY.dtype
    if not fits:
        raise returned(name, "edit of an image", change, shown(found), shown(pixels_CXY))
    return found


def reducer_rows(reducer: ImageReducer, dims: Dims) -> int:
    """Returns the number of rows that a reducer gives an image."""
    with calling(reducer.name, "tokens", reducer):
        found = reducer.tokens(dims)
    if type(found) is not int or found < 1:
        raise returned(reducer.name, "tokens", reducer, shown(found), "a whole number (int), 1 or more")
    return found


def patches(reducer: ImageReducer, dims: Dims) -> Tensor | None:
    """Returns the encoder's tokens of which each row is made, [rows, m]; None if they depend on the image."""
    with calling(reducer.name, "patches", reducer):
        found = reducer.patches(dims)
    if found is None:
        return None
    k, most = reducer_rows(reducer, dims), dims.image.tokens - 1
    try:
        patch_KM = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        patch_KM = torch.empty(0)
    fits = not patch_KM.is_floating_point() and patch_KM.ndim == 2 and len(patch_KM) == k and patch_KM.numel()
    if not fits or not 0 <= int(patch_KM.min()) <= int(patch_KM.max()) <= most:
        expected = f"{k} rows of equally many numbers from 0 to {most}, or None"
        got = f"numbers from {patch_KM.min()} to {patch_KM.max()}" if fits else shown(found)
        raise returned(reducer.name, "patches", reducer, got, expected)
    return patch_KM.long()


def reduce(
    reducer: ImageReducer,
    seen_INE: Tensor,
    connect: Callable[[Tensor], Tensor],
    module: nn.Module | None,
    shape: tuple[int, int],
) -> Tensor:
    """Returns the rows of all images, [I, rows, D]; `shape` is (rows, D)."""
    with calling(reducer.name, "reduce", reducer):
        found = reducer.reduce(seen_INE, connect, module)
    if not isinstance(found, Tensor) or found.shape != (len(seen_INE), *shape):
        raise returned(
            reducer.name, "reduce", reducer, shown(found), f"rows [images, {shape[0]}, {shape[1]}]"
        )
    return found


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
    if not isinstance(found, Tensor) or found.ndim or found.dtype not in (torch.float32, torch.float64):
        raise returned(term.name, "value", term, shown(found), "a float32 scalar, the SUM over the items")
    return found


def has_spans(weigher: TokenWeight) -> bool:
    """Returns whether a plugin gives weights to characters of answers."""
    return type(weigher).spans is not TokenWeight.spans


def has_weigh(weigher: TokenWeight) -> bool:
    """Returns whether a plugin gives weights to rows in the step. It must, unless it gives some to characters."""
    return type(weigher).weigh is not TokenWeight.weigh or not has_spans(weigher)


def spans(weigher: TokenWeight, sample: Sample, text: str) -> list[CharWeight]:
    """Returns the weights of characters of an answer."""
    name = weigher.name
    with calling(name, "spans", weigher):
        found = weigher.spans(sample, text)
    if not isinstance(found, list | tuple):
        raise returned(name, "spans", weigher, shown(found), SPANS)
    for each in found:
        begin, end, weight = each if isinstance(each, list | tuple) and len(each) == 3 else (None, None, None)
        if type(begin) is not int or type(end) is not int or type(weight) not in (int, float):
            raise returned(name, "spans", weigher, f"{each!r:.80}", SPANS)
        if not 0 <= begin <= end <= len(text) + 1:
            got = f"({begin}, {end}, {weight}) for an answer of {len(text)} characters"
            raise returned(name, "spans", weigher, got, f"0 <= from <= to <= {len(text) + 1}")
        if not 0 <= weight < math.inf:
            where = f"{name}.spans, {place_of(weigher, 'spans')}"
            raise UserError(WEIGHTS.at(where, got=f"{weight:g} in sample {sample.key}"))
    return [CharWeight(*each) for each in found]


SPANS = "a list of (from, to, weight): two whole numbers, and a number"


def weigh(weigher: TokenWeight, ctx: Ctx) -> Tensor:
    """Returns the weight of each row of the next-token loss, [S], detached."""
    with calling(weigher.name, "weigh", weigher), torch.no_grad():
        found = weigher.weigh(ctx)
    wanted = ctx.batch.count["next_token"]
    fits = isinstance(found, Tensor) and found.dtype in (torch.float32, torch.float64)
    if not fits or found.shape != (wanted,):
        expected = f"{wanted} weights in float32, one for each row of next_token"
        raise returned(weigher.name, "weigh", weigher, shown(found), expected)
    return found.detach()


def wrong_weights(weigher: TokenWeight, got: str) -> UserError:
    """Returns the error for weights that `weigh` may not give."""
    return UserError(WEIGHTS.at(f"{weigher.name}.weigh, {place_of(weigher, 'weigh')}", got=got))


def losses_of_rows(
    term: RowLoss, keys: Sequence[str], logits_CV: Tensor, target_C: Tensor, *beside: Tensor
) -> Tensor:
    """Returns the loss of each row of a chunk, [C]. `beside`: the logits of its teacher, if it has one, then the labels
    of `keys`."""
    teacher, labels = beside[: len(beside) - len(keys)], beside[len(beside) - len(keys) :]
    with calling(term.name, "rows", term):
        found = term.rows(logits_CV, target_C, *teacher, **dict(zip(keys, labels, strict=True)))
    fits = isinstance(found, Tensor) and found.dtype in (torch.float32, torch.float64)
    if not fits or found.shape != target_C.shape:
        raise returned(term.name, "rows", term, shown(found), f"{len(target_C)} losses in float32, one a row")
    return found


def embed(term: StepTerm, ctx: Ctx) -> Tensor:
    """Returns the items of a micro-batch, [n, ...]."""
    with calling(term.name, "embed", term):
        found = term.embed(ctx)
    wanted = ctx.batch.count[term.name]
    fits = isinstance(found, Tensor) and found.ndim and found.dtype in (torch.float32, torch.float64)
    if not fits or len(found) != wanted:
        got = f"{wanted} rows in float32, as many as `count` says"
        raise returned(term.name, "embed", term, shown(found), got)
    return found


def step_value(term: StepTerm, items: Tensor, module: nn.Module | None) -> Tensor:
    """Returns the sum of a term over all items of a step."""
    with calling(term.name, "step_value", term):
        found = term.step_value(items, module)
    if not isinstance(found, Tensor) or found.ndim or found.dtype not in (torch.float32, torch.float64):
        expected = "a float32 scalar, the SUM over the items of the step"
        raise returned(term.name, "step_value", term, shown(found), expected)
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
    if not isinstance(found, Mapping):
        raise returned(term.name, "metrics", term, shown(found), "a mapping from names to `Metric`")
    if wrong := wrong_names(found, "metric"):
        raise returned(term.name, "metrics", term, *wrong)
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
    if not isinstance(found, Mapping):
        raise returned(term.name, "images", term, shown(found), "a mapping from names to pixels")
    if wrong := wrong_names(found, "image"):
        raise returned(term.name, "images", term, *wrong)
    for key, pixels in found.items():
        fits = isinstance(pixels, Tensor) and pixels.ndim == 3 and len(pixels) == 3
        if not fits or not pixels.numel() or not pixels.is_floating_point():
            got = f"`{key}`: {shown(pixels)}"
            raise returned(term.name, "images", term, got, "preprocessed pixels [3, X, Y], not whole numbers")
    return found


def score(task: AuxTask, view: View, text: str) -> tuple[float, float]:
    """Returns the score of a generated text, and the expected score of a guess."""
    with calling(task.name, "score", task):
        found = task.score(view, text)
    pair = isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(x, NUMBER) for x in found)
    if not pair or not all(0 <= x <= 1 for x in found):
        raise returned(task.name, "score", task, shown(found), "(score, score of a guess), each from 0 to 1")
    return float(found[0]), float(found[1])


def puzzles(task: AuxTask, ctx: Ctx) -> Sequence[Puzzle]:
    """Returns the puzzles of a task's views."""
    with calling(task.name, "puzzles", task):
        found = task.puzzles(ctx)
    if not isinstance(found, list | tuple) or not all(map(_is_puzzle, found)):
        raise returned(task.name, "puzzles", task, shown(found), PUZZLE)
    if found and len(found) != (n := len(ctx.batch.views_of(task.name))):
        raise returned(
            task.name, "puzzles", task, f"{len(found)} puzzles", f"{n}, one for each view, or none"
        )
    return found


def text_puzzle(task: AuxTask, view: View, text: str) -> Puzzle | None:
    """Returns the puzzle of a view and the generated text, or None."""
    with calling(task.name, "text_puzzle", task):
        found = task.text_puzzle(view, text)
    if found is not None and not _is_puzzle(found):
        raise returned(task.name, "text_puzzle", task, shown(found), PUZZLE)
    return found


PUZZLE = "`Puzzle`s of words or tile numbers, with a chance"


def _is_puzzle(found: object) -> bool:
    if not isinstance(found, Puzzle):
        return False
    pieces = (found.shuffled, found.predicted, found.gold)
    return (
        all(isinstance(each, tuple) and all(type(x) in (int, str) for x in each) for each in pieces)
        and all(x is None or type(x) in (int, float) for x in (found.p_predicted, found.p_gold))
        and type(found.chance) in (int, float)
    )
