"""Measures what a recipe's sources contain: turns, images and their sizes, rows, what is supervised and too long."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmmkit.api.layout import row_count, truncate
from lmmkit.api.sample import Image, Sample, View
from lmmkit.commands.support.data_check import index_source
from lmmkit.data.image_files.image_file import check_header
from lmmkit.data.pipeline import LOST
from lmmkit.data.sources.bad_records import record_place
from lmmkit.data.sources.records import Records
from lmmkit.data.tables.table_file import in_order
from lmmkit.data.views import Views
from lmmkit.errors import Problem, Tried, UserError, raise_all, raise_together
from lmmkit.errors.data import RECORDS_EMPTY, RECORDS_PATH
from lmmkit.plan.prepare import prepare_bare
from lmmkit.progress import counted
from lmmkit.recipe import Recipe

QUANTILES = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
PER_RECORD = ("turns", "images", "rows", "supervised_rows")
PER_IMAGE = ("width", "height", "image_rows")
MORE_REASONS = "more"  # the reasons of bad records that the index does not list


@dataclass
class Reason:
    """Counts the records that are bad for one reason. `first`: the place of the first."""

    records: int
    first: str


@dataclass
class Measured:
    """Collects what records contain: a figure for each record or each image, and counts.

    `records`: of the files, bad ones too; `bad` of them are bad, for `reasons`. `too_long`: longer than the context.
    `empty`: without anything supervised; `emptied`: so only because they are cut to the context.
    """

    figures: dict[str, array] = field(
        default_factory=lambda: {name: array("q") for name in (*PER_RECORD, *PER_IMAGE)}
    )
    reasons: dict[str, Reason] = field(default_factory=dict)
    records: int = 0
    bad: int = 0
    too_long: int = 0
    rows_cut: int = 0
    supervised_cut: int = 0
    empty: int = 0
    emptied: int = 0

    def add(self, sample: Sample, sizes: Sequence[tuple[int, int]], views: Views) -> None:
        """Adds a good record whose images have these sizes, (height, width)."""
        layout = views.lay_out(View(sample=sample, supervision="train"))
        rows, supervised = row_count(layout), row_count(s for s in layout if s.supervised)
        found = {
            "turns": [len(sample.turns)], "images": [len(sample.images)], "rows": [rows],
            "supervised_rows": [supervised], "height": [height for height, _ in sizes],
            "width": [width for _, width in sizes], "image_rows": [s.n for s in layout if s.kind == "image"],
        }  # fmt: skip
        for name, values in found.items():
            self.figures[name].extend(values)
        self.empty += not supervised
        if rows > views.context:
            kept = truncate(layout, views.context)
            left = row_count(s for s in kept if s.supervised)
            self.too_long += 1
            self.rows_cut += rows - row_count(kept)
            self.supervised_cut += supervised - left
            self.emptied += supervised > 0 and not left

    def refuse(self, codes: Iterable[str], place: str) -> None:
        """Adds a bad record: the codes of its problems, and where it is."""
        self.bad += 1
        self.add_reasons(codes, place)

    def add_reasons(self, codes: Iterable[str], place: str) -> None:
        """Counts each of these codes once."""
        for code in dict.fromkeys(codes):
            self.reasons.setdefault(code, Reason(0, place)).records += 1

    def summary(self) -> dict[str, Any]:
        """Returns all counts, and quantiles of the figures."""
        rows, supervised = (sum(self.figures[name]) for name in ("rows", "supervised_rows"))
        measured = len(self.figures["rows"])
        return {
            "records": self.records, "measured": measured, "bad_records": self.bad,
            "reasons": {code: vars(each) for code, each in sorted(self.reasons.items())},
            **{name: quantiles(self.figures[name]) for name in (*PER_RECORD, *PER_IMAGE)},
            "without_images": measured - int(np.count_nonzero(self.figures["images"])),
            "supervised_share": supervised / rows if rows else None,
            "too_long": {
                "records": self.too_long, "rows_cut": self.rows_cut, "supervised_rows_cut": self.supervised_cut,
                "nothing_left": self.emptied,
            },
            "nothing_supervised": self.empty,
        }  # fmt: skip


def together(parts: Iterable[Measured]) -> Measured:
    """Returns the sum of several sources."""
    whole = Measured()
    for part in parts:
        for name, values in part.figures.items():
            whole.figures[name].extend(values)
        for code, reason in part.reasons.items():
            whole.reasons.setdefault(code, Reason(0, reason.first)).records += reason.records
        for name in ("records", "bad", "too_long", "rows_cut", "supervised_cut", "empty", "emptied"):
            setattr(whole, name, getattr(whole, name) + getattr(part, name))
    return whole


def quantiles(values: Sequence[int]) -> dict[str, int | float | None]:
    """Returns number, sum, least, median, 95 % quantile and largest of some values. A quantile is one of them."""
    found: dict[str, int | float | None] = {"count": len(values), "total": sum(values)}
    if not len(values):
        return found | dict.fromkeys(QUANTILES)
    at = np.quantile(np.asarray(values), list(QUANTILES.values()), method="inverted_cdf")
    return found | dict(zip(QUANTILES, at.tolist(), strict=True))


def measure_data(
    recipe: Recipe, names: Sequence[str], *, sample: int | None = None, trust_files: bool = False
) -> dict[str, Any]:
    """Returns what the named sources contain, by source and in all, as JSON values.

    `sample`: measure as many records of each source, chosen at random from the seed of the recipe; None: all. Rows are
    those of a record and its images, without the tokens and views that plugins add.

    `too_long`: the policy of each stage that trains on one of them.

    Raises `UserError` with all problems of files that cannot be read, and of the model's sections.
    """
    opened = Tried(lambda: _opened(recipe, names))
    prepared = Tried(lambda: prepare_bare(recipe, trust_files=trust_files))
    raise_together((opened, prepared))
    views = prepared.value.views(next(iter(recipe.stages)))
    found = {name: _measured(records, views, sample, recipe.seed) for name, records in opened.value.items()}
    of_sources = {
        name: {"template": records.template, "image_fit": str(records.image_fit), "notes": records.notes}
        | found[name].summary()
        for name, records in opened.value.items()
    }
    return {
        "context": views.context, "sample": sample, "seed": None if sample is None else recipe.seed,
        "too_long": {
            name: stage.batch.too_long for name, stage in recipe.stages.items() if set(names) & set(stage.data)
        },
        "sources": of_sources, "all": together(found.values()).summary(),
    }  # fmt: skip


def _opened(recipe: Recipe, names: Sequence[str]) -> Mapping[str, Records]:
    """Opens sources, however many of their records are bad."""
    opened, problems = {}, list[Problem]()
    for name in names:
        section = recipe.data[name]
        try:
            indexed = index_source(recipe, name, f"{name}: reading records")
        except UserError as error:
            problems += error.problems
            continue
        if not indexed.index.meta["records"]:
            problems.append(RECORDS_EMPTY.at(str(indexed.path), got="no records"))
        opened[name] = Records(
            name=name, template=section.template, image_fit=section.image_fit, indexed=indexed
        )
    raise_all(problems)
    return opened


def _measured(records: Records, views: Views, sample: int | None, seed: int) -> Measured:
    """Returns what one source contains, as far as it is measured."""
    meta, out = records.indexed.index.meta, Measured()
    out.records, out.bad = meta["records"], meta["bad_records"]
    by_place: dict[tuple[str, int, int], list[str]] = {}
    for bad in records.known_bad:
        by_place.setdefault((bad.file, bad.line, bad.record), []).append(bad.code)
    for place, codes in by_place.items():
        out.add_reasons(codes, record_place(*place))
    for problem in records.unread:
        out.add_reasons([problem.code], problem.where)
    if out.bad > len(by_place):
        out.reasons[MORE_REASONS] = Reason(out.bad - len(by_place), str(records.path))
    outside = dict(records.indexed.paths_outside())
    numbers = counted(f"{records.name}: records", chosen_records(len(records), sample, seed), unit="records")
    with in_order():
        for i in numbers:
            try:
                read = records[i]
                sizes = [Tried(lambda image=image: _size(image, records, outside)) for image in read.images]
                raise_together(sizes)
                out.add(read, [size.value for size in sizes], views)
            except UserError as error:
                codes = [problem.code for problem in error.problems]
                if set(codes) & set(LOST):
                    raise
                out.refuse(codes, records.where(i))
    return out


def _size(image: Image, records: Records, outside: Mapping[str, str]) -> tuple[int, int]:
    """Returns (height, width) of an image. Raises `UserError` if its header, or the place of its file, is refused."""
    if image.path in outside:
        raise UserError(RECORDS_PATH.at(image.path, got=outside[image.path]))
    return check_header(image, records.image_fit)


def chosen_records(count: int, sample: int | None, seed: int) -> Sequence[int]:
    """Returns the numbers of the records to measure, ascending: all, or `sample` of them, a function of the seed."""
    if sample is None or sample >= count:
        return range(count)
    return np.sort(np.random.default_rng(seed).choice(count, sample, replace=False)).tolist()
