"""Rules of the section `data`: which keys a source has, by its kind."""

from __future__ import annotations

from collections.abc import Iterator

from lmmkit.errors import Problem
from lmmkit.errors.recipe import CONFLICT
from lmmkit.recipe.rules.names import Names
from lmmkit.recipe.stage import Source


def check_source(source: Source, key: str, names: Names) -> Iterator[Problem]:
    """Checks that a source has the keys of its kind: columns are mapped by `messages` only, `vqa` only has annotations,
    and shards, which contain images, have no folder of them. Records of kind `messages` may contain images."""
    yield from _check_columns(source, key)
    yield from _check_annotations(source, key)
    yield from _check_images(source, key)


def _check_columns(source: Source, key: str) -> Iterator[Problem]:
    named = [(part, name) for part, name in vars(source.columns).items() if name]
    if named and source.kind != "messages":
        got, expected = f"kind {source.kind} with `columns`", "`columns` with kind messages only"
        yield CONFLICT.at(f"{key}.columns", got=got, expected=expected, fix="Remove `columns`.")
    for part, name in named:
        first = next(other for other, same in named if same == name)
        if first != part:
            got, expected = f"`{name}`, as {first}", "a column of its own"
            fix = "Name another column, or remove the key."
            yield CONFLICT.at(f"{key}.columns.{part}", got=got, expected=expected, fix=fix)


def _check_annotations(source: Source, key: str) -> Iterator[Problem]:
    if source.kind == "vqa" and source.annotations is None:
        got, expected = "kind vqa without `annotations`", "the file of annotations, with the answers"
        yield CONFLICT.at(key, got=got, expected=expected, fix="Add `annotations`.")
    if source.kind != "vqa" and source.annotations is not None:
        got, expected = f"kind {source.kind} with `annotations`", "`annotations` with kind vqa only"
        yield CONFLICT.at(f"{key}.annotations", got=got, expected=expected, fix="Remove `annotations`.")


def _check_images(source: Source, key: str) -> Iterator[Problem]:
    if source.kind == "messages":
        return  # its records may contain images, or name those of a folder
    if source.kind == "webdataset" and source.images is not None:
        got, expected = "kind webdataset with `images`", "no `images`: shards contain them"
        yield CONFLICT.at(f"{key}.images", got=got, expected=expected, fix="Remove `images`.")
    if source.kind != "webdataset" and source.images is None:
        got = f"kind {source.kind} without `images`"
        yield CONFLICT.at(key, got=got, expected="a folder of images", fix="Add `images`.")
