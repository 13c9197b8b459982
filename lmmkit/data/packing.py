"""Packs the views of samples into a micro-batch: numbers rows, resolves selectors, counts items."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmmkit import plugin_calls
from lmmkit.api.batch import WEIGHT, Batch, EmbedScatter, Patches, Ragged, RowGather
from lmmkit.api.components import RowLoss, Term
from lmmkit.api.layout import Layout
from lmmkit.api.model_info import ImageSpec
from lmmkit.api.needs import AttnMass, Need, teacher_models_of, teachers_of
from lmmkit.api.sample import AnyRes, Image, ImageFit, Native, View
from lmmkit.attention.forest import Forest, arrange, grow, unshared
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.data.fits.rows import TiledRows
from lmmkit.data.fits.tiles import NEWLINE
from lmmkit.data.image_files.image_file import unedited
from lmmkit.data.images import Blank, Cut, ImageRef, PixelRef, ReadImage, normalise, read_each, renormalise
from lmmkit.data.labels import item_labels, join_labels
from lmmkit.data.need_rows import (
    PlacedView,
    concatenate_rows,
    head_pairs,
    inner_rows,
    last_rows,
    need_rows,
    supervised_rows,
    target_weights,
    teacher_rows,
)
from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.errors.plan import TILES

MIN_SHARED = 8  # rows; sharing a shorter prefix costs more attention calls than it saves rows


class LaidOut(NamedTuple):
    """Holds a view and the spans of its sequence."""

    view: View
    layout: Layout


class Shown(NamedTuple):
    """Holds the name of the first view that shows an image, the number of its first row among those of all images of
    one size, or of all others, and likewise that of its first input of the encoder, of which tiles are several."""

    owner: str
    first: int
    input: int


class SizedSample(NamedTuple):
    """Holds the views of one sample, and the number of rows they take after their prefixes are merged."""

    members: tuple[LaidOut, ...]
    size: int
    source: str = ""


def read_images(
    samples: Iterable[SizedSample], reader: ReadImage, known: Collection[PixelRef] = ()
) -> dict[PixelRef, Tensor]:
    """Reads each image of these samples once, without its edits, except for images in `known`.

    Raises `UserError` with the problems of all images that cannot be read.
    """
    images: dict[PixelRef, Tensor] = {}
    problems: list[Problem] = []
    members = [member for sample in samples for member in sample.members]
    refs: list[ImageRef] = [(unedited(image), fit) for member in members for image, fit in _shown(member)]
    for ref in dict.fromkeys(refs):
        try:
            if ref not in known:
                images.update(read_each(reader, *ref))
        except UserError as error:
            problems += error.problems
    raise_all(problems)
    return images


@dataclass(frozen=True, kw_only=True)
class Packer:
    """Packs views into micro-batches.

    `image`: the size of an image and the constants to normalise it. `text_terms`: names of the next-token
    terms, "next_token" for the main view, then the tasks with a text loss. `terms`: the plugin terms whose
    items are counted. `sources`: the sources whose losses are reported separately. With `blank`, a
    micro-batch without images gets a blank image that no row uses: an encoder sharded over several ranks
    must run on all of them or on none. `teachers`: the images of those that needs read, and as `blank_teachers` the
    names of those that are sharded. `per_weight`: the next-token loss is divided by the sum of its weights.
    """

    image: ImageSpec
    text_terms: tuple[str, ...] = ("next_token",)
    needs: tuple[Need, ...] = ()
    terms: tuple[Term, ...] = ()
    share: bool = True
    sources: tuple[str, ...] = ()
    blank: bool = False
    per_weight: bool = False
    teachers: Mapping[str, ImageSpec] = field(default_factory=dict)
    blank_teachers: frozenset[str] = frozenset()

    def without_terms(self) -> Packer:
        """Returns the packer for sequences that no term reads, such as prompts."""
        return replace(self, needs=(), terms=(), teachers={})

    def sized(self, members: Sequence[LaidOut], source: str = "") -> SizedSample:
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
            cut_T[path[_after_images(member.layout)]] = True
        forest, new = arrange(forest, cut_T)
        return forest, [new[path] for path in paths]

    def pack(
        self, samples: Sequence[SizedSample], images: Mapping[PixelRef, Tensor]
    ) -> tuple[Batch, list[np.ndarray]]:
        """Returns one micro-batch of these samples, and the rows of every view in order.

        `images` has their images, as `read_images` returns them. Prefixes are merged across samples too: a
        micro-batch contains a common system prompt once.
        """
        members = [m for sample in samples for m in sample.members]
        forest, paths = self._arranged(members)
        id_T, scatters, shown = _origins(members, paths, len(forest), self.image)
        pixels, native = [], []
        for ref, at in shown.items():
            found = self._pixels(images[unedited(ref[0]), ref[1]], ref[0], at.owner)
            (native if isinstance(ref[1], Native) else pixels).append(found)
        pixels_ICXY = self._stacked(pixels, blank=self.blank and not native)
        predict, target_S, term_S = self._targets(members, paths)
        placed = [
            PlacedView(v, *member, path) for v, (member, path) in enumerate(zip(members, paths, strict=True))
        ]
        key_T, gathers, maps = need_rows(self.needs, placed, _image_items(scatters, len(forest)))
        teacher_pixels, gathers = self._teachers(gathers, shown, images)
        mapped = {each.name for each in maps}
        mass = [
            pick.row_Q for need, pick in gathers.items() if isinstance(need, AttnMass) and need not in mapped
        ]
        spec = AttentionSpec(forest, key_T, torch.cat([*mass, concatenate_rows([])]).unique(), maps=maps)
        head = head_pairs(predict, target_S, gathers)
        batch = Batch(
            attention=_ready(spec),
            last=_ready(replace(spec, read_T=last_rows(len(forest), predict, gathers, maps))),
            id_T=id_T,
            scatters=scatters,
            pixels_ICXY=pixels_ICXY,
            patches=Patches.of(native, self.image.patch) if native else None,
            predict=predict,
            target_S=target_S,
            term_S=term_S,
            weight_S=_weights(members),
            sources=self.sources,
            source_S=self._from(samples, predict.view_Q, term_S),
            text_terms=self.text_terms,
            gathers=gathers,
            head=head,
            reference=head_pairs(predict, target_S, gathers, "reference", head),
            inner=inner_rows(gathers),
            labels=self._labels(members, gathers),
            views=_names(members),
            sample_V=tuple(n for n, sample in enumerate(samples) for _ in sample.members),
            first_image_V=_first_images(members, shown, len(pixels_ICXY)),
            teacher_pixels=teacher_pixels,
        )
        text = np.bincount(term_S.numpy(), minlength=len(self.text_terms)).tolist()
        count = dict(zip(self.text_terms, text, strict=True))
        by_source = np.bincount(batch.source_S.numpy(), minlength=len(self.sources) + 1).tolist()
        count |= {f"loss/{name}": n for name, n in zip(self.sources, by_source, strict=False)}
        count |= {term.name: plugin_calls.count(term, batch) for term in self.terms if term.name not in count}
        if self.per_weight:
            count |= _weight_sums(batch)
        return replace(batch, count=count), paths

    def _labels(
        self, members: Sequence[LaidOut], gathers: Mapping[Need, RowGather]
    ) -> dict[str, Tensor | Ragged]:
        """Returns the labels of the views by "instance/key"; those of a `RowLoss` have a value for each item."""
        labels = join_labels(m.view for m in members)
        for term in (term for term in self.terms if isinstance(term, RowLoss)):
            (need,) = plugin_calls.needs(term)
            labels |= item_labels(term.name, labels, gathers[need], _names(members))
        return labels

    def _from(self, samples: Sequence[SizedSample], view_S: Tensor, term_S: Tensor) -> Tensor:
        """Returns the source number of each supervised row; `len(sources)` for tasks and other sources."""
        numbers = {name: number for number, name in enumerate(self.sources)}
        other = len(self.sources)
        source_V = torch.tensor(
            [numbers.get(s.source, other) for s in samples for _ in s.members], dtype=torch.int64
        )
        return torch.where(term_S == 0, source_V[view_S], other)

    def _pixels(self, decoded_CXY: Tensor, image: Image, owner: str) -> Tensor:
        """Returns the pixels of an image as the encoder reads them, with the edit of the task `owner`."""
        pixels_CXY = normalise(decoded_CXY, self.image)
        if image.edit is None:
            return pixels_CXY
        if decoded_CXY.dim() == 4:
            if not isinstance(image.edit, Blank):
                raise UserError(TILES.at(f"plugins.{owner}", got="an edit of an image"))
            return torch.stack([image.edit(tile) for tile in pixels_CXY])
        return plugin_calls.edited(owner, image.edit, pixels_CXY)

    def _stacked(self, pixels: Sequence[Tensor], *, blank: bool) -> Tensor:
        """Returns the inputs of the encoder, of images of one or of several. `blank`: one image if there is none."""
        if not pixels:
            return torch.zeros(int(blank), 3, self.image.size, self.image.size)
        if all(each.dim() == 3 for each in pixels):
            return torch.stack(list(pixels))
        return torch.cat([each if each.dim() == 4 else each[None] for each in pixels])

    def _teachers(
        self, gathers: Mapping[Need, RowGather], shown: Mapping[ImageRef, Shown], images: Mapping
    ) -> tuple[dict[str, Tensor], dict[Need, RowGather]]:
        """Returns for each teacher the images that its needs read, as it reads them, and the gathers with their items
        numbered among the rows of these images. A whole model reads all images."""
        pixels, changed, refs = {}, dict(gathers), list(shown)
        first_I = np.array([at.first for at in shown.values()], np.int64)
        whole = teacher_models_of(gathers)
        for name in dict.fromkeys((*teachers_of(gathers), *whole)):
            if name not in self.teachers:
                continue
            changed, read = (
                (changed, range(len(refs))) if name in whole else teacher_rows(name, changed, first_I)
            )
            spec = self.teachers[name]
            found = [self._teacher_pixels(spec, images, refs[n], shown[refs[n]].owner) for n in read]
            blank = torch.zeros(int(name in self.blank_teachers), 3, spec.size, spec.size)
            pixels[name] = torch.stack(found) if found else blank
        return pixels, changed

    def _teacher_pixels(self, spec: ImageSpec, images: Mapping, ref: ImageRef, owner: str) -> Tensor:
        """Returns the pixels of an image as a teacher reads them. The edit is that of the model's pixels, with their
        mean and deviation, at the teacher's size."""
        (image, fit), cut = ref, Cut.of(spec)
        decoded_CXY = images[
            (unedited(image), fit) if cut == Cut.of(self.image) else (unedited(image), fit, cut)
        ]
        if image.edit is None:
            return normalise(decoded_CXY, spec)
        return renormalise(self._pixels(decoded_CXY, image, owner), self.image, spec)

    def _targets(self, members, paths) -> tuple[RowGather, Tensor, Tensor]:
        """Returns the rows that predict, on the path of their view; their targets; their text terms."""
        rows, views, targets, terms = [], [], [], []
        for v, (member, path) in enumerate(zip(members, paths, strict=True)):
            if member.view.supervision != "train":
                continue
            name = "next_token" if member.view.name == "main" else member.view.name
            ids, positions = supervised_rows(member.layout)
            rows.append(path[positions - 1])
            views.append(np.full(len(positions), v))
            targets.append(ids)
            terms.append(np.full(len(positions), self.text_terms.index(name)))
        return (
            RowGather.of(concatenate_rows(rows), concatenate_rows(views)),
            concatenate_rows(targets),
            concatenate_rows(terms),
        )


def _weights(members: Iterable[LaidOut]) -> Tensor | None:
    """Returns the weights of the rows of the text terms; None if answers have none."""
    learned = [layout for view, layout in members if view.supervision == "train"]
    if not any(span.weights for layout in learned for span in layout):
        return None
    return torch.from_numpy(np.concatenate([target_weights(layout) for layout in learned]))


def _weight_sums(batch: Batch) -> dict[str, float]:
    """Returns the sums of the weights of the rows of the next-token loss, of all and by source."""
    n = len(batch.term_S)
    weight_S = np.ones(n) if batch.weight_S is None else batch.weight_S.double().numpy()
    parts = {f"loss/{name}": batch.source_S.numpy() == i for i, name in enumerate(batch.sources)}
    parts["next_token"] = batch.term_S.numpy() == 0
    return {f"{WEIGHT}{name}": math.fsum(weight_S[part]) for name, part in parts.items()}


def _origins(
    members: Sequence[LaidOut], paths: Sequence[np.ndarray], total: int, spec: ImageSpec
) -> tuple[Tensor, tuple[EmbedScatter, ...], dict[ImageRef, Shown]]:
    """Returns token ids, scatters, and the distinct images in the order of their items."""
    id_T = np.full(total, -1, np.int64)
    item_T: dict[str, np.ndarray] = {}
    shown: dict[ImageRef, Shown] = {}
    n_items, n_inputs = Counter[str](), Counter[str]()  # by source, of the images so far
    for member, path in zip(members, paths, strict=True):
        start = 0
        for span in member.layout:
            rows = path[start : start + span.n]
            start += span.n
            if span.kind == "text":
                id_T[rows] = span.ids
                continue
            source = f"plugins.{span.owner}"
            if span.image is not None:
                ref = (span.image, member.view.sample.image_fit)
                items_N, inputs, items = _items(*ref, span.n, spec)
                source = "native" if isinstance(ref[1], Native) else "vision"
                if ref not in shown:
                    shown[ref] = Shown(member.view.name, n_items[source], n_inputs[source])
                    n_items[source] += items
                    n_inputs[source] += inputs
                if len(newlines := rows[items_N == NEWLINE]):
                    item_T.setdefault("newline", np.full(total, -1, np.int64))[newlines] = 0
                rows, items_N = rows[items_N != NEWLINE], items_N[items_N != NEWLINE]
                item_T.setdefault(source, np.full(total, -1, np.int64))[rows] = shown[ref].first + items_N
                continue
            item_T.setdefault(source, np.full(total, -1, np.int64))[rows] = np.arange(span.n)
    scatters = []
    for source, items in sorted(item_T.items()):
        rows = np.flatnonzero(items >= 0)
        scatters.append(EmbedScatter(source, torch.from_numpy(rows), torch.from_numpy(items[rows])))
    return torch.from_numpy(id_T), tuple(scatters), shown


def _items(image: Image, fit: ImageFit, n: int, spec: ImageSpec) -> tuple[np.ndarray, int, int]:
    """Returns the item of each of the n rows of an image, of those that the connector gives for its inputs or
    `NEWLINE`; the number of these inputs of the encoder, and of their items."""
    if not isinstance(fit, AnyRes):
        return np.arange(n), 1, n
    tiling = TiledRows(fit, spec).tiling(image)
    return tiling.token_of_rows(spec.grid), tiling.images, tiling.images * spec.tokens


def _names(members: Sequence[LaidOut]) -> tuple[tuple[str, str], ...]:
    """Returns the name and the sample of each view."""
    return tuple((m.view.name, m.view.sample.key) for m in members)


def _image_items(scatters: Iterable[EmbedScatter], total: int) -> Tensor:
    """Returns the number of each row among the rows of all images, [total]; -1 for other rows."""
    item_T = torch.full((total,), -1)
    for scatter in scatters:
        if scatter.source == "vision":
            item_T[scatter.row_N] = scatter.item_N
    return item_T


def _ready(spec: AttentionSpec) -> AttentionSpec:
    """Computes the attention calls of `spec` here, in a data worker, so that the model does not wait."""
    assert spec.calls is not None
    return spec


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


def _after_images(layout: Layout) -> list[int]:
    """Returns the position after the last image; [] without an image or without a span after it.
    Up to this position the views of one template have equal lengths; after it they do not."""
    ends = list(accumulate(span.n for span in layout))
    last = max((i for i, span in enumerate(layout) if span.kind == "image"), default=len(layout) - 1)
    return ends[last : len(ends) - 1][:1]


def _shown(member: LaidOut) -> list[ImageRef]:
    """Returns the images of a view in the order of its spans."""
    fit = member.view.sample.image_fit
    return [(span.image, fit) for span in member.layout if span.image is not None]


def _first_images(members: Sequence[LaidOut], shown: Mapping[ImageRef, Shown], sized: int) -> tuple[int, ...]:
    """Returns the number of the first image of each view. `sized`: how many images of one size come first."""
    firsts = (next(iter(_shown(member)), None) for member in members)
    return tuple(
        -1 if ref is None else shown[ref].input + (sized if isinstance(ref[1], Native) else 0)
        for ref in firsts
    )
