"""Samples as a stage trains on them: views, spans, and images as the encoder gets them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL import Image as Pil
from torch import Tensor

from lmmkit.api.layout import Layout, Span, row_count
from lmmkit.api.sample import AnyRes, Image, Native, View
from lmmkit.data.fits.rows import TiledRows
from lmmkit.data.images import ImageRef, natural
from lmmkit.data.micro_batch.laid_out import LaidOut
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.data.pipeline import LOST, Pipeline
from lmmkit.data.views import DROPPED
from lmmkit.errors import Problem, UserError
from lmmkit.errors.data import SAMPLE_TOO_LONG
from lmmkit.plan.explain import label_text
from lmmkit.report.image_shelf import webp_uri
from lmmkit.report.span_text import SpanText, TextPart

SMALL = 96  # pixels a side, up to which images are stored without loss
LABELS = {  # the kind of a span, and its name on the page
    "bos": "begin", "system": "system", "user": "user", "header": "header", "response": "response", "image": "image",
    "learned": "learned", "none": "text",
}  # fmt: skip


class Tile(NamedTuple):
    """Holds an input of the encoder as a data URI, and its place: line and column."""

    uri: str
    line: int
    column: int


@dataclass(frozen=True, kw_only=True)
class ShownImage:
    """Holds an image of a sample: `whole`, which is the overview if it is cut into `tiles`, on a `grid` of (lines,
    columns). `edit`: the name of what changes it."""

    number: int
    whole: str
    edit: str = ""
    tiles: Sequence[Tile] = ()
    grid: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class ShownSpan:
    """Holds a span. `kind`: a role of text, "image" or "learned". `use`: "train" or "read" for a supervised one."""

    kind: str
    label: str
    rows: int
    use: str = ""
    parts: Sequence[TextPart] = ()
    image: ShownImage | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ShownView:
    """Holds a view. `cut`: what of it does not fit into the context."""

    name: str
    role: str
    use: str
    rows: int
    supervised: int
    labels: Sequence[tuple[str, str]]
    cut: str
    spans: Sequence[ShownSpan]


@dataclass(frozen=True, kw_only=True)
class TrainedSample:
    """Holds a sample. `packed`: its rows after views share their prefixes. `dropped`: what the length policy leaves
    out. `problem`: why it is not trained on, and `then` what happens in its place."""

    key: str
    source: str
    where: str
    epoch: int
    shape: str
    packed: int = 0
    dropped: str = ""
    problem: Problem | None = None
    then: str = ""
    views: Sequence[ShownView] = ()


class Place(NamedTuple):
    """Names a sample of a stage: source, epoch, record, and the step whose other samples its views may ask for."""

    source: str
    epoch: int
    record: int
    step: int


@dataclass
class SampleReader:
    """Reads samples of a stage as training does, and makes them ready for a page."""

    pipeline: Pipeline
    text: SpanText = field(init=False)

    def __post_init__(self) -> None:
        self.text = SpanText(self.pipeline.views.tokenizer)

    def read(self, place: Place) -> TrainedSample:
        """Returns a sample. Raises `UserError` for a file that changed, and for a fault of a plugin."""
        records = self.pipeline.sources[place.source]
        known: dict[str, Any] = {
            "source": place.source, "epoch": place.epoch, "where": records.where(place.record),
            "key": records.where(place.record), "shape": f"{records.template}, {records.image_fit}",
        }  # fmt: skip
        dropped: Counter[str] = Counter()
        views = self.pipeline.views
        try:
            sample = records[place.record]
            known["key"] = sample.key
            views.measure(sample)
            others = self.pipeline.other_samples(place.source, place.step)
            members = views.fitting(sample, place.epoch, dropped, others)
            images, packed = self._images(members) if members else ({}, 0)
            dropped["truncated"] *= not members  # each view on the page says it
        except UserError as error:
            problem = error.problems[0]
            bad = problem.code.startswith(("records/", "image/")) and problem.code not in LOST
            if not bad and problem.code != SAMPLE_TOO_LONG.code:
                raise
            replaced = bad and records.bad_records.kind == "skip"
            then = "the next good record of the source takes its place" if replaced else "training stops here"
            return TrainedSample(**known, problem=problem, then=then)
        return TrainedSample(
            **known, packed=packed, dropped=_dropped_text(dropped),
            views=[self._view(member, images) for member in members],
        )  # fmt: skip

    def _images(self, members: Sequence[LaidOut]) -> tuple[Mapping[ImageRef, ShownImage], int]:
        """Returns the images of the views as the encoder gets them, in the order of packing, and the packed rows."""
        packer = self.pipeline.packer.without_terms()
        sized = packer.sized(members)
        decoded = read_images([sized], self.pipeline.reader)
        batch, _ = packer.pack([sized], decoded)
        pixels, spec = natural(batch.pixels_ICXY, packer.image), packer.image
        refs = dict.fromkeys(
            (span.image, member.view.sample.image_fit)
            for member in members
            for span in member.layout
            if span.image is not None
        )
        files: dict[tuple[str, object, str | None], int] = {}
        found, at, kept = {}, 0, 0
        for image, fit in refs:
            number = files.setdefault((image.path, image.part or image.cell, image.address), len(files) + 1)
            if isinstance(fit, Native):
                assert batch.patches is not None, "it has the images that keep their shape"
                own_CXY, kept = natural(batch.patches.pixels(kept), spec), kept + 1
                found[image, fit] = _shown(image, number, own_CXY[None], (0, 0))
                continue
            tiling = TiledRows(fit, spec).tiling(image) if isinstance(fit, AnyRes) else None
            inputs = 1 if tiling is None else tiling.images
            grid = (0, 0) if tiling is None else tiling.grid
            found[image, fit] = _shown(image, number, pixels[at : at + inputs], grid)
            at += inputs
        return found, sized.size

    def _view(self, member: LaidOut, images: Mapping[ImageRef, ShownImage]) -> ShownView:
        view, layout = member
        labels = dict(view.labels) | {
            f"{name}/{key}": value for name, each in view.sample_labels.items() for key, value in each.items()
        }
        return ShownView(
            name=view.name, role=view.role, use=view.supervision, rows=row_count(layout),
            supervised=row_count(span for span in layout if span.supervised and view.supervision != "none"),
            labels=[(key, label_text(value)) for key, value in labels.items()],
            cut=_cut_text(self.pipeline.views.lay_out(view), layout),
            spans=[self._span(span, view, images) for span in layout],
        )  # fmt: skip

    def _span(self, span: Span, view: View, images: Mapping[ImageRef, ShownImage]) -> ShownSpan:
        use = view.supervision if span.supervised and view.supervision != "none" else ""
        if span.image is not None:
            shown = images[span.image, view.sample.image_fit]
            note = f"edit {shown.edit}" if shown.edit else ""
            label = f"{LABELS['image']} {shown.number}"
            return ShownSpan(kind="image", label=label, rows=span.n, use=use, image=shown, note=note)
        if span.kind == "learned":
            note = f"{span.token_name} of {span.owner}"
            return ShownSpan(kind="learned", label=LABELS["learned"], rows=span.n, use=use, note=note)
        return ShownSpan(
            kind=span.role, label=LABELS[span.role], rows=span.n, use=use, parts=self.text.parts(span.ids),
            note=_weights_text(span.weights),
        )  # fmt: skip


def first_places(pipeline: Pipeline, first: int, count: int) -> Iterator[Place]:
    """Yields the samples of a stage in the order of training, from number `first` on."""
    for k in range(first, min(first + count, pipeline.total)):
        source, epoch, record = pipeline.order.at(k)
        yield Place(source, epoch, record, k // pipeline.samples)


def source_places(pipeline: Pipeline, source: str, first: int, count: int) -> Iterator[Place]:
    """Yields the records of a source in their order, as the first epoch trains on them."""
    last = len(pipeline.sources[source])
    return (Place(source, 0, record, 0) for record in range(first, min(first + count, last)))


def _shown(image: Image, number: int, pixels_ICXY: Tensor, grid: tuple[int, int]) -> ShownImage:
    """Returns an image: one input of the encoder, or the overview and the tiles, line by line."""
    whole, *tiles = map(_uri, pixels_ICXY)
    return ShownImage(
        number=number, whole=whole, grid=grid, edit=type(image.edit).__name__ if image.edit is not None else "",
        tiles=[Tile(uri, *divmod(i, grid[1])) for i, uri in enumerate(tiles)],
    )  # fmt: skip


def _uri(pixels_CXY: Tensor) -> str:
    values = (pixels_CXY * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return webp_uri(Pil.fromarray(values), lossless=max(values.shape) <= SMALL)


def _cut_text(whole: Layout, kept: Layout) -> str:
    """Returns what is cut off a view, in words; empty if nothing is."""
    rows, left = row_count(whole), row_count(kept)
    lost = row_count(s for s in whole if s.supervised) - row_count(s for s in kept if s.supervised)
    if rows == left:
        return ""
    return f"Cut to the context: {rows - left:,} of {rows:,} rows are left out, {lost:,} of them supervised"


def _dropped_text(dropped: Counter[str]) -> str:
    """Returns what the length policy left out of a sample, or cut, each as a sentence; empty if nothing was."""
    found = [
        f"{one}s {why}: {dropped[name]}."
        for name, (one, why) in DROPPED.items()
        if name != "records" and dropped[name]
    ]
    return " ".join(each[0].upper() + each[1:] for each in found)


def _weights_text(weights: Iterable[float]) -> str:
    """Returns the weights of a span in the next-token loss; empty if all are 1."""
    found = sorted(set(weights))
    if found in ([], [1.0]):
        return ""
    return f"weight {found[0]:g}" if len(found) == 1 else f"weights {found[0]:g} to {found[-1]:g}"
