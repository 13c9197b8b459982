"""Resolves what terms read to rows of a micro-batch: of states, attention, image features, and of the head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmmkit.api.batch import HeadPairs, RowGather
from lmmkit.api.layout import Layout
from lmmkit.api.needs import (
    ATTENTION,
    AttnMass,
    AttnTo,
    HiddenAt,
    HiddenMean,
    Layer,
    LogProb,
    LogSumExp,
    Need,
    OfTargets,
    TeacherAt,
    positions_of,
    reads_images,
    selector,
)
from lmmkit.api.sample import View
from lmmkit.attention.key_maps import KeyBlock, KeyMap, padded_keys
from lmmkit.errors import UserError
from lmmkit.errors.plan import WRONG_VIEW


class PlacedView(NamedTuple):
    """Holds a view, its number in the batch, its spans, and the row of the batch at each of its positions."""

    number: int
    view: View
    layout: Layout
    path: np.ndarray


class NeedRows(NamedTuple):
    """Holds the key rows of attention mass as a mask, the rows that each need reads, and what is read of the attention
    weights: by each `AttnTo`, and by masses on other keys than those of the first."""

    key_T: Tensor
    gathers: dict[Need, RowGather]
    maps: tuple[KeyMap, ...]


def need_rows(needs: Sequence[Need], placed: Sequence[PlacedView], item_T: Tensor) -> NeedRows:
    """Returns the rows that each need reads. `item_T`: the number of each row among those of all images, else -1."""
    key_T, gathers, maps = np.zeros(len(item_T), bool), {}, []
    merged = next((need.k for need in needs if isinstance(need, AttnMass)), None)
    for need in needs:
        read = [each for each in placed if selector(need).takes(each.view)]
        positions = [positions_of(need, each.layout) for each in read]
        if isinstance(need, ATTENTION):
            queries = [_with_keys(need, *each) for each in zip(read, positions, strict=True)]
            positions = [each.position_I for each in queries]
            uniform = [each.attended_I / (each.position_I + 1) for each in queries]
            share_Q = torch.from_numpy(np.concatenate([*uniform, np.empty(0)])).float()
            gather = replace(_gather(read, positions), uniform_Q=share_Q)
            if isinstance(need, AttnMass) and need.k == merged:
                for each in queries:
                    key_T[each.key_J] = True
            else:
                blocks = list(_blocks(queries))
                maps.append(_key_map(need, gather, blocks))
                if isinstance(need, AttnTo):
                    gather = replace(gather, key_QK=torch.from_numpy(padded_keys(blocks)))
        elif isinstance(need, OfTargets):
            targets = [_tokens(*each) for each in zip(read, positions, strict=True)]
            positions = [each - 1 for each in positions]
            gather = replace(_gather(read, positions), target_Q=concatenate_rows(targets))
        else:
            gather = _gather(read, positions)
        if reads_images(need):
            offsets = [_offsets(each.layout)[at] for each, at in zip(read, positions, strict=True)]
            gather = replace(gather, item_Q=item_T[gather.row_Q], patch_Q=concatenate_rows(offsets))
        gathers[need] = gather
    return NeedRows(torch.from_numpy(key_T), gathers, tuple(maps))


def _gather(read: Sequence[PlacedView], positions: Sequence[np.ndarray]) -> RowGather:
    """Returns the rows at these positions of each view."""
    rows = [each.path[at] for each, at in zip(read, positions, strict=True)]
    views = [np.full(len(at), each.number) for each, at in zip(read, positions, strict=True)]
    return RowGather.of(concatenate_rows(rows), concatenate_rows(views))


class _Queries(NamedTuple):
    """Holds the queries of a view that attend to some key: their positions, and to how many of its keys each
    attends; and the rows of all keys, none if there is no query."""

    position_I: np.ndarray
    attended_I: np.ndarray
    key_J: np.ndarray


def _with_keys(need: AttnMass | AttnTo, placed: PlacedView, position_I: np.ndarray) -> _Queries:
    """Returns the queries of a view that can attend to some key: without any there is no mass."""
    is_key = np.zeros(len(placed.path), bool)
    is_key[need.k.positions(placed.layout)] = True
    attended_I = np.cumsum(is_key)[position_I]
    position_I, attended_I = position_I[attended_I > 0], attended_I[attended_I > 0]
    return _Queries(position_I, attended_I, placed.path[is_key & (len(position_I) > 0)])


def _blocks(queries: Iterable[_Queries]) -> Iterator[KeyBlock]:
    """Yields the queries of each view that has any, with the keys that some of them attends to."""
    start = 0
    for _, attended_I, key_J in queries:
        if len(attended_I):
            yield KeyBlock(start, start + len(attended_I), key_J[: attended_I.max()], attended_I)
            start += len(attended_I)


def _key_map(need: AttnMass | AttnTo, gather: RowGather, blocks: Sequence[KeyBlock]) -> KeyMap:
    """Returns what a need reads of the attention weights, for the queries of its gather."""
    heads = need.heads if isinstance(need, AttnTo) else "all"
    return KeyMap(
        need, gather.row_Q.numpy(), tuple(blocks), None if need.layers == "all" else need.layers,
        None if heads == "all" else heads, summed=isinstance(need, AttnMass),
    )  # fmt: skip


def _offsets(layout: Layout) -> np.ndarray:
    """Returns the place of each row in its span."""
    return np.concatenate([np.arange(span.n) for span in layout])


def _tokens(placed: PlacedView, positions: np.ndarray) -> np.ndarray:
    """Returns the ids at supervised positions of a view. Raises `UserError` if the view may not be read so."""
    view = placed.view
    if view.supervision == "none":
        got = "a view of supervision `none`, whose log-probabilities a term reads"
        raise UserError(WRONG_VIEW.at(f"plugins.{view.name}", got=got))
    ids, places = supervised_rows(placed.layout)
    return ids[np.searchsorted(places, positions)]


def supervised_rows(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ids, positions) of the rows that are targets. Nothing predicts the row at position 0."""
    ids, positions, start = [], [], 0
    for span in layout:
        if span.supervised:
            skip = 1 if start == 0 else 0
            ids.append(np.asarray(span.ids[skip:], np.int64))
            positions.append(np.arange(start + skip, start + span.n))
        start += span.n
    empty = np.empty(0, np.int64)
    return np.concatenate([*ids, empty]), np.concatenate([*positions, empty])


def target_weights(layout: Layout) -> np.ndarray:
    """Returns the weights of the rows that are targets, float32."""
    found = [np.asarray(span.weights or [1.0] * span.n, np.float32) for span in layout if span.supervised]
    if layout and layout[0].supervised:
        found[0] = found[0][1:]
    return np.concatenate([*found, np.empty(0, np.float32)])


def last_rows(
    total: int, predict: RowGather, gathers: Mapping[Need, RowGather], maps: Iterable[KeyMap]
) -> Tensor:
    """Returns a mask [total] of the rows whose states after the last layer are read, or whose weights there."""
    hidden = [gather.row_Q for layer, gather in _hidden(gathers) if layer == "final"]
    scored = [gather.row_Q for gather in gathers.values() if gather.target_Q is not None]
    mapped = [torch.from_numpy(each.row_Q) for each in maps]
    rows = torch.cat([predict.row_Q, *hidden, *scored, *mapped])
    return torch.zeros(total, dtype=torch.bool).index_fill(0, rows, True)


def inner_rows(gathers: Mapping[Need, RowGather]) -> dict[int, Tensor]:
    """Returns the distinct rows whose states are read between blocks, by the number of blocks before."""
    rows: dict[int, list[Tensor]] = {}
    for layer, gather in _hidden(gathers):
        if layer != "final":
            rows.setdefault(layer, []).append(gather.row_Q)
    return {layer: torch.cat(found).unique() for layer, found in sorted(rows.items())}


def _hidden(gathers: Mapping[Need, RowGather]) -> Iterator[tuple[Layer, RowGather]]:
    """Yields each need of hidden states: its layer and its rows."""
    for need, gather in gathers.items():
        if isinstance(need, HiddenAt | HiddenMean):
            yield need.layer, gather


def teacher_rows(
    teacher: str, gathers: Mapping[Need, RowGather], first_I: np.ndarray
) -> tuple[dict[Need, RowGather], list[int]]:
    """Returns the gathers with the items of a teacher's needs counted among the images that these read, and the
    numbers of these images. `first_I`: the number of the first row of each image of the batch."""
    items = {
        need: gather.item_Q.numpy()
        for need, gather in gathers.items()
        if isinstance(need, TeacherAt) and need.teacher == teacher and gather.item_Q is not None
    }
    images = {need: np.searchsorted(first_I, item_Q, side="right") - 1 for need, item_Q in items.items()}
    read = np.unique(np.concatenate(list(images.values())))
    start_J = np.cumsum([0, *np.diff(first_I)[read[:-1]]])  # of the images that are read, without the others
    changed = dict(gathers)
    for need, item_Q in items.items():
        place_Q = start_J[np.searchsorted(read, images[need])] + item_Q - first_I[images[need]]
        changed[need] = replace(gathers[need], item_Q=torch.from_numpy(place_Q))
    return changed, read.tolist()


def head_pairs(
    predict: RowGather, target_S: Tensor, gathers: Mapping[Need, RowGather], model: str = "policy",
    beside: HeadPairs | None = None,
) -> HeadPairs | None:  # fmt: skip
    """Returns the pairs that one model computes; None if no term reads log-probabilities of it.

    The trained model ("policy") also computes the pairs of the text terms, from `predict` and `target_S`. `beside`: the
    pairs of another model, whose rows this one computes too: products of equal shapes round alike, so equal models
    give equal bits.
    """
    asked = {need: gather for need, gather in gathers.items() if _scored_by(need) == model}
    if not asked:
        return None
    text = [(predict.row_Q, target_S)] if model == "policy" else []
    parts = [*text, *((gather.row_Q, gather.target_Q) for gather in asked.values())]
    row_N, target_N = (np.concatenate([part[i].numpy() for part in parts]) for i in (0, 1))
    more = [] if beside is None else [beside.row_R.numpy()]
    row_R = np.unique(np.concatenate([row_N, *more]))
    place_N = np.searchsorted(row_R, row_N)
    base = target_N.max(initial=0) + 1
    code_P, pair_N = np.unique(place_N * base + target_N, return_inverse=True)
    ends = np.cumsum([len(part[0]) for part in parts])[:-1]
    pairs, places = np.split(pair_N, ends), np.split(place_N, ends)
    items = {
        need: torch.from_numpy(place_Q if isinstance(need, LogSumExp) else pair_Q)
        for need, pair_Q, place_Q in zip(asked, pairs[len(text) :], places[len(text) :], strict=True)
    }
    pair_S = torch.from_numpy(pairs[0]) if text else target_S[:0]
    place_P, target_P = (torch.from_numpy(part) for part in divmod(code_P, base))
    return HeadPairs(torch.from_numpy(row_R), place_P, target_P, pair_S, items)


def _scored_by(need: Need) -> str:
    """Returns the model whose log-probabilities a need reads; "" if it reads none."""
    if isinstance(need, LogProb):
        return need.model
    return "policy" if isinstance(need, LogSumExp) else ""


def concatenate_rows(arrays: Sequence[np.ndarray]) -> Tensor:
    """Returns int64 arrays as one tensor; there may be none."""
    return torch.from_numpy(np.concatenate([*arrays, np.empty(0, np.int64)]))
