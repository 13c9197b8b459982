"""Yields the token pieces of a sample as readable text."""

from __future__ import annotations

from collections.abc import Iterator

from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import AnyRes, Image, ImageFit, Native, Sample, View
from lmmkit.data.fits.rows import NativeRows, TiledRows
from lmmkit.data.image_files.image_file import image_size
from lmmkit.plan.prepare import Prepared


def pieces(prepared: Prepared, sample: Sample) -> Iterator[tuple[str, bool]]:
    """Yields (text, supervised) for each span in the main view, with a middle dot between tokens."""
    stage = next(iter(prepared.plans))
    tokenizer = prepared.tokenizer
    for span in prepared.views(stage).lay_out(View(sample=sample, supervision="train")):
        if span.kind == "text":
            yield "·".join(tokenizer.decode([i]) or f"<{i}>" for i in span.ids) + " ", span.supervised
        else:
            yield f"[{span.token_name or 'image'} x {span.n}] ", False


def tiles_text(fit: ImageFit, spec: ImageSpec, image: Image) -> str:
    """Returns how an image is cut into tiles or patches, to be printed after its name; empty for one size of all."""
    if isinstance(fit, Native):
        (height, width), (lines, columns) = image_size(image), NativeRows(fit, spec).grid(image)
        return f"  {width} x {height} pixels as {lines} x {columns} patches, {lines * columns} rows"
    if not isinstance(fit, AnyRes):
        return ""
    (height, width), tiling = image_size(image), TiledRows(fit, spec).tiling(image)
    lines, columns = tiling.grid
    return f"  {width} x {height} pixels on {lines} x {columns} tiles, {tiling.rows(spec.grid)} rows"
