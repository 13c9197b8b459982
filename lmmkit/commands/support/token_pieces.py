"""Yields the token pieces of a sample as readable text."""

from __future__ import annotations

from collections.abc import Iterator

from lmmkit.api.sample import AnyRes, Image, ImageFit, Native, Sample, View
from lmmkit.data.fits.rows import TiledRows, grid_of
from lmmkit.data.image_files.image_file import image_size
from lmmkit.plan.prepare import Prepared
from lmmkit.progress import plural


def pieces(prepared: Prepared, sample: Sample) -> Iterator[tuple[str, bool]]:
    """Yields (text, supervised) for each span in the main view, with a middle dot between tokens."""
    stage = next(iter(prepared.plans))
    tokenizer = prepared.tokenizer
    for span in prepared.views(stage).lay_out(View(sample=sample, supervision="train")):
        if span.kind == "text":
            yield "·".join(tokenizer.decode([i]) or f"<{i}>" for i in span.ids) + " ", span.supervised
        else:
            yield f"[{span.token_name or 'image'} x {span.n}] ", False


def tiles_text(prepared: Prepared, fit: ImageFit, image: Image) -> str:
    """Returns how an image is cut into tiles or patches, to be printed after its name; empty for one size of all."""
    spec = prepared.dims.image
    if isinstance(fit, Native):
        (height, width), grid = image_size(image), grid_of(image, fit, spec)
        rows = plural(prepared.rows_of_grid(grid), "row")
        return f"  {width} x {height} pixels as {grid[0]} x {grid[1]} patches, {rows}"
    if not isinstance(fit, AnyRes):
        return ""
    (height, width), tiling = image_size(image), TiledRows(fit, spec).tiling(image)
    lines, columns = tiling.grid
    return f"  {width} x {height} pixels on {lines} x {columns} tiles, {tiling.rows(spec.row_grid)} rows"
