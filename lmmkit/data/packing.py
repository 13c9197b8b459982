"""Packs the views of samples into a micro-batch: numbers rows, resolves selectors, counts items."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from lmmkit import plugin_calls
from lmmkit.api.batch import PLUGINS, WEIGHT, Batch, EmbedScatter, Patches, Ragged, RowGather
from lmmkit.api.components import RowLoss, Term
from lmmkit.api.layout import Layout
from lmmkit.api.model_info import ImageSpec
from lmmkit.api.needs import AttnMass, Need
from lmmkit.api.sample import Native
from lmmkit.attention.forest import Forest, arrange, grow, unshared
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.data.fits.tiles import NEWLINE
from lmmkit.data.images import ImageRef, PixelRef
from lmmkit.data.micro_batch.labels import item_labels, join_labels
from lmmkit.data.micro_batch.laid_out import LaidOut, SizedSample
from lmmkit.data.micro_batch.need_rows import (
    PlacedView,
    concatenate_rows,
    head_pairs,
    inner_rows,
    last_rows,
    need_rows,
    supervised_rows,
    target_weights,
)
from lmmkit.data.micro_batch.packed_images import (
    PackedImage,
    encoder_pixels,
    first_images,
    image_items,
    teacher_pixels,
)

MIN_SHARED = 8  # rows; sharing a shorter prefix costs more attention calls than it saves rows


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
        pixels_ICXY, native = encoder_pixels(shown, images, self.image, blank=self.blank)
        predict, target_S, term_S = self._targets(members, paths)
        placed = [
            PlacedView(v, *member, path) for v, (member, path) in enumerate(zip(members, paths, strict=True))
        ]
        key_T, gathers, maps = need_rows(self.needs, placed, _items_of_rows(scatters, len(forest)))
        taught, gathers = teacher_pixels(
            gathers, shown, images, spec=self.image, teachers=self.teachers, sharded=self.blank_teachers
        )
        mapped = {each.name for each in maps}
        mass = [
            gather.row_Q
            for need, gather in gathers.items()
            if isinstance(need, AttnMass) and need not in mapped
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
            first_image_V=first_images(members, shown, len(pixels_ICXY)),
            teacher_pixels=taught,
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
) -> tuple[Tensor, tuple[EmbedScatter, ...], dict[ImageRef, PackedImage]]:
    """Returns token ids, scatters, and the distinct images in the order of their items."""
    id_T = np.full(total, -1, np.int64)
    item_T: dict[str, np.ndarray] = {}
    shown: dict[ImageRef, PackedImage] = {}
    n_items, n_inputs = Counter[str](), Counter[str]()  # by source, of the images so far
    for member, path in zip(members, paths, strict=True):
        start = 0
        for span in member.layout:
            rows = path[start : start + span.n]
            start += span.n
            if span.kind == "text":
                id_T[rows] = span.ids
                continue
            source = f"{PLUGINS}{span.owner}"
            if span.image is not None:
                ref = (span.image, member.view.sample.image_fit)
                items_N, inputs, items = image_items(*ref, span.n, spec)
                source = "native" if isinstance(ref[1], Native) else "vision"
                if ref not in shown:
                    shown[ref] = PackedImage(member.view.name, n_items[source], n_inputs[source])
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


def _names(members: Sequence[LaidOut]) -> tuple[tuple[str, str], ...]:
    """Returns the name and the sample of each view."""
    return tuple((m.view.name, m.view.sample.key) for m in members)


def _items_of_rows(scatters: Iterable[EmbedScatter], total: int) -> Tensor:
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
