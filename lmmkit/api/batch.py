"""The packed micro-batch that the loader yields and the objective reads, with all rows resolved.

A `Batch` is built in a data worker on the host. All references to rows are row numbers, and all counts
are Python ints, so a training step never waits for a value from the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lmmkit.api.needs import HiddenMean, Need
from lmmkit.attention.forest import Forest
from lmmkit.attention.schedule import AttentionSpec


@dataclass(frozen=True)
class EmbedScatter:
    """Describes `x[row_N] = source[item_N]`: the embeddings of rows without a token id.

    `source` is "vision" (items count the rows of all images, image by image) or "plugins.<instance>".
    """

    source: str
    row_N: Tensor
    item_N: Tensor


@dataclass(frozen=True)
class RowGather:
    """Holds pairs (row, view) to read; a row that several views share occurs once per view.

    `uniform_Q` is given for attention mass only: the mass that uniform attention would put there.
    """

    row_Q: Tensor
    view_Q: Tensor
    uniform_Q: Tensor | None = None

    def __len__(self) -> int:
        return len(self.row_Q)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Holds one micro-batch.

    `id_T` is -1 exactly at the rows that a scatter writes. `predict.row_Q[s]` is the row whose state
    predicts `target_S[s]`, for text term number `term_S[s]` of `text_terms`. `attention` specifies the
    attention of every layer but the last; `last` specifies that of the last layer, which outputs only
    rows that are read. Both stay on the host. `inner` has the rows whose states are read after so many
    blocks, ascending, by the number of blocks.
    `labels` is keyed "instance/name". `views` lists (view name, sample key) in order. `first_image_V`
    is the index in `pixels_ICXY` of the first image of each view, -1 if it has none. `count` is the
    number of items that a term averages over, and, as "loss/SOURCE", the number of supervised rows of
    the main view by source. `source_S` is the index in `sources` for those rows, and `len(sources)`
    for all others. `dropped` counts what the layout left out, by reason.
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
    inner: Mapping[int, Tensor] = field(default_factory=dict)
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    views: tuple[tuple[str, str], ...] = ()
    first_image_V: tuple[int, ...] = ()
    count: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    source_S: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.id_T)

    @property
    def forest(self) -> Forest:
        """Returns the forest: which row attends to which."""
        return self.attention.forest

    def views_of(self, name: str) -> list[int]:
        """Returns the numbers of the views of this name."""
        return [i for i, (view, _) in enumerate(self.views) if view == name]

    def value_count(self, need: Need) -> int:
        """Returns the number of values of a need: rows, or for a `HiddenMean` the views that have any."""
        gather = self.gathers[need]
        return len(gather.view_Q.unique()) if isinstance(need, HiddenMean) else len(gather)

    def first_image(self, view: int) -> Tensor:
        """Returns the preprocessed pixels [C, X, Y] of the first image of a view."""
        return self.pixels_ICXY[self.first_image_V[view]]

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch with all model inputs on `device`; the forest and the calls stay on the host."""
        device = torch.device(device)
        if device.type == "cpu":
            return self

        def move(t: Tensor) -> Tensor:
            return t.to(device, non_blocking=True)

        def move_gather(g: RowGather) -> RowGather:
            uniform = None if g.uniform_Q is None else move(g.uniform_Q)
            return RowGather(move(g.row_Q), move(g.view_Q), uniform)

        return replace(
            self,
            id_T=move(self.id_T),
            scatters=tuple(EmbedScatter(s.source, move(s.row_N), move(s.item_N)) for s in self.scatters),
            pixels_ICXY=move(self.pixels_ICXY),
            predict=move_gather(self.predict),
            target_S=move(self.target_S),
            term_S=move(self.term_S),
            source_S=move(self.source_S),
            gathers={need: move_gather(gather) for need, gather in self.gathers.items()},
            inner={layer: move(rows) for layer, rows in self.inner.items()},
            labels={name: move(label) for name, label in self.labels.items()},
        )


Step = tuple[Batch, ...]
"""The micro-batches of one rank for ONE optimizer step, as the loader yields them."""
