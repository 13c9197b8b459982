"""Packs the views of samples into a micro-batch: numbers rows, resolves selectors, counts items."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lmmkit.api.batch import Batch, EmbedScatter, RowGather
from lmmkit.api.components import Term
from lmmkit.api.layout import Layout
from lmmkit.api.needs import AttnMass, Need, selector
from lmmkit.api.sample import Image, ImageFit, View
from lmmkit.attention.forest import Forest, arrange, grow, unshared
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.errors import Problem, UserError

MIN_SHARED = 8  # rows; sharing a shorter prefix costs more attention calls than it saves rows


class LaidOut(NamedTuple):
    """Holds a view and the spans of its sequence."""

    view: View
    layout: Layout


class SizedSample(NamedTuple):
    """Holds the views of one sample, and the number of rows they take after their prefixes are merged."""

    members: tuple[LaidOut, ...]
    size: int
    source: str = ""


ImageRef = tuple[Image, ImageFit]


class ReadsImages(Protocol):
    def __call__(self, image: Image, shape: ImageFit) -> Tensor: ...


class Unreadable(UserError):
    """Lists the images that cannot be read, each with its problem."""

    def __init__(self, bad: Sequence[tuple[Image, Problem]]) -> None:
        self.bad = tuple(bad)
        super().__init__(problem for _, problem in bad)

    def __reduce__(self):
        return Unreadable, (self.bad,)


@dataclass(frozen=True, kw_only=True)
class Packer:
    """Packs views into micro-batches.

    `text_terms`: names of the next-token terms, "next_token" for the main view, then the tasks with a
    text loss. `terms`: the plugin terms whose items are counted. `sources`: the sources whose losses are
    reported separately. With `blank`, a micro-batch without images gets a blank image that no row uses:
    an encoder sharded over several ranks must run on all of them or on none.
    """

    reader: ReadsImages
    image_rows: int
    image_size: int
    text_terms: tuple[str, ...] = ("next_token",)
    needs: tuple[Need, ...] = ()
    terms: tuple[Term, ...] = ()
    share: bool = True
    sources: tuple[str, ...] = ()
    blank: bool = False

    def tree(self, members: Sequence[LaidOut], source: str = "") -> SizedSample:
        """Returns the views of one sample with their number of rows."""
        return SizedSample(tuple(members), len(self._grown(members)[0]), source)

    def _grown(self, members: Sequence[LaidOut]) -> tuple[Forest, list[np.ndarray]]:
        codes: dict[Hashable, int] = {}
        keys = [_keys(member, codes) for member in members]
        return grow([keys], min_shared=MIN_SHARED) if self.share else unshared([len(each) for each in keys])

    def _arranged(self, members: Sequence[LaidOut]) -> tuple[Forest, list[np.ndarray]]:
        """Returns a forest in which images are at even distances, and the rows of every view."""
        forest, paths = self._grown(members)
        cut_T = np.zeros(len(forest), bool)
        for member, path in zip(members, paths, strict=True):
            cut_T[path[_behind_pictures(member.layout)]] = True
        forest, new = arrange(forest, cut_T)
        return forest, [new[path] for path in paths]

    def pack(
        self, trees: Sequence[SizedSample], dropped: Mapping[str, int] | None = None
    ) -> tuple[Batch, list[np.ndarray]]:
        """Returns one micro-batch of these samples, and the rows of every view in order.

        Prefixes are merged across samples too: a micro-batch contains a common system prompt once.
        """
        members = [m for tree in trees for m in tree.members]
        forest, paths = self._arranged(members)
        id_T, scatters, images = self._origins(members, paths, len(forest))
        pixels = self._read(images)
        predict, target_S, term_S = self._targets(members, paths)
        key_T, gathers = self._gathers(members, paths, len(forest))
        mass = [pick.row_Q for need, pick in gathers.items() if isinstance(need, AttnMass)]
        spec = AttentionSpec(forest, key_T, torch.cat([*mass, _cat([])]).unique())
        batch = Batch(
            attention=_ready(spec),
            last=_ready(replace(spec, read_T=_read(len(forest), predict, gathers))),
            id_T=id_T,
            scatters=scatters,
            pixels_ICXY=torch.stack(pixels)
            if pixels
            else torch.zeros(int(self.blank), 3, self.image_size, self.image_size),
            predict=predict,
            target_S=target_S,
            term_S=term_S,
            sources=self.sources,
            source_S=self._from(trees, predict.view_Q, term_S),
            text_terms=self.text_terms,
            gathers=gathers,
            labels=_labels(members),
            views=tuple((m.view.name, m.view.sample.key) for m in members),
            first_image_V=_first_images(members, images),
            dropped=dropped or {},
        )
        text = np.bincount(term_S.numpy(), minlength=len(self.text_terms)).tolist()
        count = dict(zip(self.text_terms, text, strict=True))
        by_source = np.bincount(batch.source_S.numpy(), minlength=len(self.sources) + 1).tolist()
        count |= {f"loss/{name}": n for name, n in zip(self.sources, by_source, strict=False)}
        count |= {term.name: term.count(batch) for term in self.terms if term.name not in count}
        return replace(batch, count=count), paths

    def _from(self, trees: Sequence[SizedSample], view_S: Tensor, term_S: Tensor) -> Tensor:
        """Returns the source number of each supervised row; `len(sources)` for tasks and other sources."""
        numbers = {name: number for number, name in enumerate(self.sources)}
        other = len(self.sources)
        source_V = torch.tensor(
            [numbers.get(t.source, other) for t in trees for _ in t.members], dtype=torch.int64
        )
        return torch.where(term_S == 0, source_V[view_S], other)

    def _read(self, pictures: Sequence[ImageRef]) -> list[Tensor]:
        """Returns the pixels of the images. Raises `Unreadable` with all images that cannot be read."""
        pixels, bad = [], []
        for image, shape in pictures:
            try:
                pixels.append(self.reader(image, shape))
            except UserError as error:
                bad.append((image, error.problems[0]))
        if bad:
            raise Unreadable(bad)
        return pixels

    def _origins(self, members, paths, total) -> tuple[Tensor, tuple[EmbedScatter, ...], list[ImageRef]]:
        """Returns token ids, scatters, and the distinct (image, fit) in the order of their tokens."""
        id_T = np.full(total, -1, np.int64)
        item_T: dict[str, np.ndarray] = {}
        images: dict[ImageRef, int] = {}
        for member, path in zip(members, paths, strict=True):
            start = 0
            for span in member.layout:
                rows = path[start : start + span.n]
                start += span.n
                if span.kind == "text":
                    id_T[rows] = span.ids
                    continue
                if span.kind == "image":
                    key = (span.image, member.view.sample.image_fit)
                    first, source = images.setdefault(key, len(images)) * self.image_rows, "vision"
                else:
                    first, source = 0, f"plugins.{span.owner}"
                item_T.setdefault(source, np.full(total, -1, np.int64))[rows] = first + np.arange(span.n)
        scatters = []
        for source, items in sorted(item_T.items()):
            rows = np.flatnonzero(items >= 0)
            scatters.append(EmbedScatter(source, torch.from_numpy(rows), torch.from_numpy(items[rows])))
        return torch.from_numpy(id_T), tuple(scatters), list(images)

    def _targets(self, members, paths) -> tuple[RowGather, Tensor, Tensor]:
        """Returns the rows that predict, on the path of their view; their targets; their text terms."""
        rows, views, targets, terms = [], [], [], []
        for v, (member, path) in enumerate(zip(members, paths, strict=True)):
            if not member.view.supervised:
                continue
            name = "next_token" if member.view.name == "main" else member.view.name
            ids, place = _supervised(member.layout)
            rows.append(path[place - 1])
            views.append(np.full(len(place), v))
            targets.append(ids)
            terms.append(np.full(len(place), self.text_terms.index(name)))
        return RowGather(_cat(rows), _cat(views)), _cat(targets), _cat(terms)

    def _gathers(self, members, paths, total) -> tuple[Tensor, dict[Need, RowGather]]:
        """Returns the key rows of attention mass, and the rows that each need reads."""
        key_T = np.zeros(total, bool)
        gathers = {}
        for need in self.needs:
            rows, views, uniform = [], [], []
            for v, (member, path) in enumerate(zip(members, paths, strict=True)):
                if member.view.name != selector(need).view:
                    continue
                places = selector(need).positions(member.layout)
                if isinstance(need, AttnMass):
                    is_key = np.zeros(len(path), bool)
                    is_key[need.k.positions(member.layout)] = True
                    places = places[np.cumsum(is_key)[places] > 0]  # a row without a visible key has no mass
                    key_T[path[is_key & (len(places) > 0)]] = True
                    uniform.append(np.cumsum(is_key)[places] / (places + 1))
                rows.append(path[places])
                views.append(np.full(len(places), v))
            share = torch.from_numpy(np.concatenate([*uniform, np.empty(0)])).float()
            gathers[need] = RowGather(_cat(rows), _cat(views), share if isinstance(need, AttnMass) else None)
        return torch.from_numpy(key_T), gathers


def _ready(spec: AttentionSpec) -> AttentionSpec:
    """Computes the attention calls of `spec` here, in a data worker, so that the model does not wait."""
    assert spec.calls is not None
    return spec


def _read(total: int, predict: RowGather, gathers: Mapping[Need, RowGather]) -> Tensor:
    """Returns a mask [total] of the rows whose states after the last layer are read."""
    hidden = [pick.row_Q for need, pick in gathers.items() if not isinstance(need, AttnMass)]
    return torch.zeros(total, dtype=torch.bool).index_fill(0, torch.cat([predict.row_Q, *hidden]), True)


def _keys(member: LaidOut, codes: dict[Hashable, int]) -> np.ndarray:
    """Returns int64 identities of a view's rows: token ids, or negative for images and learned tokens."""
    parts = []
    for span in member.layout:
        if span.kind == "text":
            parts.append(np.asarray(span.ids, np.int64))
        else:
            what = (
                (span.image, member.view.sample.image_fit)
                if span.kind == "image"
                else (span.owner, span.token_name)
            )
            code = codes.setdefault(what, len(codes))
            parts.append(-1 - (code << 32) - np.arange(span.n))
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _behind_pictures(layout: Layout) -> list[int]:
    """Returns the position after the last image; [] without an image or without a span after it.
    Up to this position the views of one template have equal lengths; after it they do not."""
    ends = list(accumulate(span.n for span in layout))
    last = max((i for i, span in enumerate(layout) if span.kind == "image"), default=len(layout) - 1)
    return ends[last : len(ends) - 1][:1]


def _supervised(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ids, positions) of the rows that are targets. Nothing predicts the row at position 0."""
    ids, places, start = [], [], 0
    for span in layout:
        if span.supervised:
            skip = 1 if start == 0 else 0
            ids.append(np.asarray(span.ids[skip:], np.int64))
            places.append(np.arange(start + skip, start + span.n))
        start += span.n
    empty = np.empty(0, np.int64)
    return np.concatenate([*ids, empty]), np.concatenate([*places, empty])


def _labels(members: Sequence[LaidOut]) -> dict[str, Tensor]:
    found: dict[str, list] = {}
    for member in members:
        for key, value in member.view.labels.items():
            found.setdefault(f"{member.view.name}/{key}", []).append(value)
    return {key: torch.tensor(values) for key, values in found.items()}


def _first_images(members: Sequence[LaidOut], images: Sequence[ImageRef]) -> tuple[int, ...]:
    number: dict[tuple[Image | None, ImageFit], int] = {key: i for i, key in enumerate(images)}
    firsts = []
    for member in members:
        first = next((span.image for span in member.layout if span.kind == "image"), None)
        firsts.append(number.get((first, member.view.sample.image_fit), -1))
    return tuple(firsts)


def _cat(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([*arrays, np.empty(0, np.int64)]))
