"""Rules of the section `data`: which keys a source has, by its kind."""

from __future__ import annotations

from collections.abc import Iterator

from lmmkit.errors import Problem
from lmmkit.errors.recipe import CONFLICT
from lmmkit.recipe.rules.names import Names
from lmmkit.recipe.stage import Source


def check_source(source: Source, key: str, names: Names) -> Iterator[Problem]:
    """Checks that a records file has a folder of images, that shards, which contain images, have none, that only a
    source of kind `messages` maps columns, and only one of kind `vqa` has annotations. Parquet and Arrow files may
    contain images."""
    if source.kind != "messages" and any(vars(source.columns).values()):
        got, expected = f"kind {source.kind} with `columns`", "`columns` with kind messages only"
        yield CONFLICT.at(f"{key}.columns", got=got, expected=expected, fix="Remove `columns`.")
    named = [(part, name) for part, name in vars(source.columns).items() if name]
    for part, name in named:
        first = next(other for other, same in named if same == name)
        if first != part:
            got, expected = f"`{name}`, as {first}", "a column of its own"
            fix = "Name another column, or remove the key."
            yield CONFLICT.at(f"{key}.columns.{part}", got=got, expected=expected, fix=fix)
    if (source.kind == "vqa") == (source.annotations is None):
        absent = source.annotations is None
        got = f"kind {source.kind} {'without' if absent else 'with'} `annotations`"
        fix = "Add `annotations`." if absent else "Remove `annotations`."
        expected = (
            "the file of annotations, with the answers" if absent else "`annotations` with kind vqa only"
        )
        yield CONFLICT.at(key if absent else f"{key}.annotations", got=got, expected=expected, fix=fix)
    may_contain = source.kind == "messages" and not source.records.endswith((".json", ".jsonl"))
    if not may_contain and (source.kind != "webdataset") == (source.images is None):
        expected = "a folder of images" if source.images is None else "no `images`: shards contain them"
        got = f"kind {source.kind} {'without' if source.images is None else 'with'} `images`"
        fix = "Add `images`." if source.images is None else "Remove `images`."
        yield CONFLICT.at(f"{key}.images" if source.images else key, got=got, expected=expected, fix=fix)
