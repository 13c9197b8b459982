"""The packed micro-batch that the loader yields and the objective reads, with all rows resolved.

A `Batch` is built in a data worker on the host. All references to rows are row numbers, and all counts
are Python ints, so a training step never waits for a value from the device.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmmkit.api.needs import HiddenMean, Need, teachers_of
from lmmkit.attention.forest import Forest
from lmmkit.attention.schedule import AttentionSpec

PLUGINS = "plugins."  # before the name of an instance, as the source of a scatter
WEIGHT = "weight/"  # before the name of a sum whose weights are counted in place of its items


@dataclass(frozen=True)
class EmbedScatter:
    """Describes `x[row_N] = source[item_N]`: the embeddings of rows without a token id.

    `source` is "vision" (items count the rows of all images of one size, image by image), "native" (those of
    `patches`), "newline" (the learned row of tiles) or "plugins.<instance>".
    """

    source: str
    row_N: Tensor
    item_N: Tensor

    @property
    def instance(self) -> str | None:
        """Returns the plugin instance whose learned tokens it scatters; None for the rows of images."""
        return self.source.removeprefix(PLUGINS) if self.source.startswith(PLUGINS) else None


@dataclass(frozen=True)
class Patches:
    """Holds preprocessed images of unlike sizes as patches, image by image and line by line: `patch_RF` is
    [patches, colours x patch height x patch width]. `grids`: the lines and columns of each image."""

    patch_RF: Tensor
    grids: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, pixels: Sequence[Tensor], side: int) -> Patches:
        """Cuts images [3, X, Y] into patches, `side` pixels wide and high."""
        grids = tuple((image.shape[1] // side, image.shape[2] // side) for image in pixels)
        cut = [
            image.unflatten(2, (columns, side))
            .unflatten(1, (lines, side))
            .permute(1, 3, 0, 2, 4)
            .flatten(0, 1)
            for image, (lines, columns) in zip(pixels, grids, strict=True)
        ]
        return cls(torch.cat(cut).flatten(1), grids)

    @property
    def side(self) -> int:
        """Returns the width and height of a patch, in pixels."""
        return math.isqrt(self.patch_RF.shape[1] // 3)

    def after(self, pixels_ICXY: Tensor) -> Patches:
        """Returns the patches of images of one size, then these."""
        if not len(pixels_ICXY):
            return self
        sized = Patches.of(list(pixels_ICXY), self.side)
        return Patches(torch.cat([sized.patch_RF, self.patch_RF]), (*sized.grids, *self.grids))

    @property
    def lengths(self) -> list[int]:
        """Returns the number of patches of each image."""
        return [lines * columns for lines, columns in self.grids]

    def pixels(self, image: int) -> Tensor:
        """Returns the pixels [3, X, Y] of an image."""
        (lines, columns), start = self.grids[image], sum(self.lengths[:image])
        patch_NF = self.patch_RF[start : start + lines * columns]
        return (
            patch_NF.view(lines, columns, 3, self.side, self.side)
            .permute(2, 0, 3, 1, 4)
            .reshape(3, lines * self.side, columns * self.side)
        )


@dataclass(frozen=True)
class RowGather:
    """Holds pairs (row, view) to read, in the order of the views; a row that several views share occurs once
    per view.

    `size_G` is the number of pairs of each view that has any, and `group_Q` the index of a pair's view among
    those. `uniform_Q` is given for needs of attention: the mass that uniform attention would put on all their keys.
    `item_Q` and `patch_Q` are given for image rows only: the number of a row among the rows of all images of
    the batch, and among those of its image.
    `key_QK` is given for `AttnTo`: the rows of the keys of each query, -1 where it has none or cannot attend to it.
    `target_Q` is given for log-probabilities: the token that the row predicts. `host_Q` is `view_Q` on the host, if
    that is on a device.
    """

    row_Q: Tensor
    view_Q: Tensor
    group_Q: Tensor
    size_G: Tensor
    uniform_Q: Tensor | None = None
    item_Q: Tensor | None = None
    patch_Q: Tensor | None = None
    target_Q: Tensor | None = None
    key_QK: Tensor | None = None
    host_Q: Tensor | None = None

    @classmethod
    def of(cls, row_Q: Tensor, view_Q: Tensor, uniform_Q: Tensor | None = None) -> RowGather:
        """Counts the pairs of each view; on the host, as the device would make it wait for the number of views."""
        _, group_Q, size_G = view_Q.unique_consecutive(return_inverse=True, return_counts=True)
        return cls(row_Q, view_Q, group_Q, size_G, uniform_Q)

    def __len__(self) -> int:
        return len(self.row_Q)

    def host_views(self) -> np.ndarray:
        """Returns the view of each item, without a wait for the device."""
        return (self.view_Q if self.host_Q is None else self.host_Q).numpy()


@dataclass(frozen=True)
class HeadPairs:
    """Holds distinct pairs (row, target), so that a row which several views and terms read meets the head once.

    `row_R` are the distinct rows. Pair p is row `row_R[place_P[p]]` with `target_P[p]`; `place_P` is ascending and
    stays on the host. `pair_S` is the pair of each row of the text terms. `item_Q` has for each need the pair of
    each of its items; for a `LogSumExp` the place in `row_R`.
    """

    row_R: Tensor
    place_P: Tensor
    target_P: Tensor
    pair_S: Tensor
    item_Q: Mapping[Need, Tensor]


class Ragged(NamedTuple):
    """Holds values of unlike numbers for each view, one after the other; value n is of row `view_N[n]` of the
    labels."""

    flat: Tensor
    view_N: Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Holds one micro-batch.

    `id_T` is -1 exactly at the rows that a scatter writes. `predict.row_Q[s]` is the row whose state
    predicts `target_S[s]`, for text term number `term_S[s]` of `text_terms`. `attention` specifies the
    attention of every layer but the last; `last` specifies that of the last layer, which outputs only
    rows that are read. Both stay on the host. `inner` has the rows whose states are read after so many
    blocks, ascending, by the number of blocks.
    `labels` is keyed "instance/key": those of a task have a row for each of its views, those of a loss a row
    for each of all views, those of a `RowLoss` one for each of its items. `views` lists (view name, sample key)
    in order, and `sample_V` has the number of the sample of each. `patches` has the images that keep their shape.
    `first_image_V` is the number of the first image of each view, in `pixels_ICXY` or after these in `patches`, -1 if
    it has none. `count` is the
    number of items that a term averages over, and, as "loss/SOURCE", the number of supervised rows of
    the main view by source. If they are divided by the sum of their weights, it has these as "weight/next_token" and
    "weight/loss/SOURCE". `source_S` is the index in `sources` for those rows, and `len(sources)`
    for all others. `weight_S` has the weights of the rows of the text terms, if answers have any.
    `dropped` counts what the layout left out, by reason. `head` is given if a term reads
    log-probabilities, `reference` if it reads those of the reference. `teacher_pixels` has the images whose features
    terms read of a teacher, as it reads them, by its name.
    """

    attention: AttentionSpec
    last: AttentionSpec
    id_T: Tensor
    scatters: tuple[EmbedScatter, ...]
    pixels_ICXY: Tensor
    predict: RowGather
    target_S: Tensor
    term_S: Tensor
    text_terms: tuple[str, ...]
    gathers: Mapping[Need, RowGather] = field(default_factory=dict)
    head: HeadPairs | None = None
    reference: HeadPairs | None = None
    inner: Mapping[int, Tensor] = field(default_factory=dict)
    labels: Mapping[str, Tensor | Ragged] = field(default_factory=dict)
    views: tuple[tuple[str, str], ...] = ()
    sample_V: tuple[int, ...] = ()
    first_image_V: tuple[int, ...] = ()
    count: Mapping[str, Any] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    source_S: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    weight_S: Tensor | None = None
    patches: Patches | None = None
    teacher_pixels: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.id_T)

    @property
    def images(self) -> int:
        """Returns the number of images, of which an overview and its tiles are several."""
        return len(self.pixels_ICXY) + (0 if self.patches is None else len(self.patches.grids))

    @property
    def forest(self) -> Forest:
        """Returns the forest: which row attends to which."""
        return self.attention.forest

    def reading(self, needs: Collection[Need]) -> Batch:
        """Returns the batch for a pass that computes only these needs of it, over the same rows of each layer.

        The head computes all its pairs if it has any of a need, and none else.
        """
        layers = {getattr(need, "layer", "final") for need in needs}
        return replace(
            self,
            attention=self.attention.with_maps(needs),
            last=self.last.with_maps(needs),
            gathers={need: gather for need, gather in self.gathers.items() if need in needs},
            inner={layer: rows for layer, rows in self.inner.items() if layer in layers},
            head=_of_needs(self.head, needs),
            reference=_of_needs(self.reference, needs),
            teacher_pixels={n: x for n, x in self.teacher_pixels.items() if n in teachers_of(needs)},
        )

    def views_of(self, name: str) -> list[int]:
        """Returns the numbers of the views of this name."""
        return [i for i, (view, _) in enumerate(self.views) if view == name]

    def labels_of(self, name: str) -> dict[str, Tensor]:
        """Returns the labels of an instance of which none is ragged, by key."""
        found = {key: label for key, label in self.labels.items() if key.partition("/")[0] == name}
        return {key.partition("/")[2]: label for key, label in found.items() if isinstance(label, Tensor)}

    def value_count(self, need: Need) -> int:
        """Returns the number of values of a need: rows, or for a `HiddenMean` the views that have any."""
        gather = self.gathers[need]
        return len(gather.size_G) if isinstance(need, HiddenMean) else len(gather)

    def item_views(self, need: Need) -> np.ndarray:
        """Returns the view of each value of a need, ascending; on the host."""
        views = self.gathers[need].host_views()
        return np.unique(views) if isinstance(need, HiddenMean) else views

    def item_samples(self, need: Need) -> np.ndarray:
        """Returns the number of the sample of each value of a need; on the host."""
        return np.asarray(self.sample_V, np.int64)[self.item_views(need)]

    def samples_with(self, *needs: Need) -> int:
        """Returns the number of samples that have values of all these needs; on the host."""
        return len(set.intersection(*(set(self.item_samples(need).tolist()) for need in needs)))

    def first_image(self, view: int) -> Tensor:
        """Returns the preprocessed pixels [C, X, Y] of the first image of a view."""
        number, sized = self.first_image_V[view], len(self.pixels_ICXY)
        if number < sized:
            return self.pixels_ICXY[number]
        assert self.patches is not None, "it has the other images"
        return self.patches.pixels(number - sized)

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch with all model inputs on `device`; the forest and the calls stay on the host."""
        device = torch.device(device)
        if device.type == "cpu":
            return self

        def move(t: Tensor) -> Tensor:
            return t.to(device, non_blocking=True)

        def move_gather(g: RowGather) -> RowGather:
            moved: dict[str, Any] = {
                name: None if rows is None else move(rows) for name, rows in vars(g).items()
            }
            return RowGather(**moved | {"host_Q": g.view_Q})

        def move_head(h: HeadPairs) -> HeadPairs:
            items = {need: move(item_Q) for need, item_Q in h.item_Q.items()}
            return HeadPairs(move(h.row_R), h.place_P, move(h.target_P), move(h.pair_S), items)

        return replace(
            self,
            id_T=move(self.id_T),
            scatters=tuple(EmbedScatter(s.source, move(s.row_N), move(s.item_N)) for s in self.scatters),
            pixels_ICXY=move(self.pixels_ICXY),
            patches=None
            if self.patches is None
            else Patches(move(self.patches.patch_RF), self.patches.grids),
            predict=move_gather(self.predict),
            target_S=move(self.target_S),
            term_S=move(self.term_S),
            source_S=move(self.source_S),
            weight_S=None if self.weight_S is None else move(self.weight_S),
            gathers={need: move_gather(gather) for need, gather in self.gathers.items()},
            head=None if self.head is None else move_head(self.head),
            reference=None if self.reference is None else move_head(self.reference),
            inner={layer: move(rows) for layer, rows in self.inner.items()},
            teacher_pixels={name: move(pixels) for name, pixels in self.teacher_pixels.items()},
            labels={
                name: move(label) if isinstance(label, Tensor) else Ragged(*map(move, label))
                for name, label in self.labels.items()
            },
        )


def _of_needs(head: HeadPairs | None, needs: Collection[Need]) -> HeadPairs | None:
    return head if head is not None and any(need in head.item_Q for need in needs) else None


Step = tuple[Batch, ...]
"""The micro-batches of one rank for ONE optimizer step, as the loader yields them."""
