"""Rows for people: token pieces of a sample, pictures that do not decode."""

from __future__ import annotations

from collections.abc import Iterator

from lmmkit.data.images import read_image
from lmmkit.data.records import Records
from lmmkit.dims import ImageSpec
from lmmkit.errors import Problem, UserError
from lmmkit.plan.prepare import Prepared
from lmmkit.sample import Sample, View


def pieces(prepared: Prepared, sample: Sample) -> Iterator[tuple[str, bool]]:
    """(text, supervised) of each span of the main view, tokens parted by a middle dot."""
    stage = next(iter(prepared.plans))
    tokenizer = prepared.tokenizer
    for span in prepared.views(stage).lay_out(View(sample=sample, learn=True)):
        if span.kind == "text":
            yield "·".join(tokenizer.decode([i]) or f"<{i}>" for i in span.ids) + " ", span.learn
        else:
            yield f"[{span.mark or 'image'} x {span.n}] ", False


def undecodable(records: Records, spec: ImageSpec, decode: bool) -> list[Problem]:
    """A problem for each picture that does not read whole; none are read unless `decode`."""
    found = []
    done: set[str] = set()
    for i in range(len(records)) if decode else ():
        for image in records[i].images:
            if image.path not in done:
                done.add(image.path)
                try:
                    read_image(image.path, spec, records.image_shape)
                except UserError as error:
                    found += [
                        Problem(p.code, f"{records.where(i)}, {p.where}", p.got, p.want, p.mend)
                        for p in error.problems
                    ]
    return found
