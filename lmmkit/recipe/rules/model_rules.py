"""Rules of the section `model`: parts, connector, chat format, and how images fit."""

from __future__ import annotations

from collections.abc import Iterator

from lmmkit.api.sample import AnyRes, ImageFit, Native
from lmmkit.errors import Problem
from lmmkit.errors.recipe import CONFLICT, OUT_OF_RANGE
from lmmkit.recipe.model import (
    CONNECTOR_SETTINGS,
    Chat,
    ConnectorConfig,
    Model,
    RopeScaling,
    TextFrom,
    TextScratch,
    VisionFrom,
    VisionScratch,
    VisionTimm,
)
from lmmkit.recipe.rules.names import Names, check_known


def _divides(key: str, name: str, value: int, of: str, over: int) -> Iterator[Problem]:
    if over % value:
        expected, fix = f"a divisor of {of} = {over}", f"Change `{name}` or `{of}`."
        yield CONFLICT.at(f"{key}.{name}", got=str(value), expected=expected, fix=fix)


def check_vision(
    vision: VisionScratch | VisionTimm | VisionFrom, key: str, names: Names
) -> Iterator[Problem]:
    """Checks that heads divide the width, patches divide the image, and the feature layer exists."""
    if not isinstance(vision, VisionScratch):
        return
    yield from _divides(key, "heads", vision.heads, "width", vision.width)
    yield from _divides(key, "patch", vision.patch, "image_size", vision.image_size)
    depth = vision.depth
    if not -depth - 1 <= vision.feature_layer <= depth:
        yield OUT_OF_RANGE.at(
            f"{key}.feature_layer",
            got=str(vision.feature_layer),
            expected=f"{-depth - 1} to {depth}, because there are {depth} blocks",
            fix="Choose a layer that exists.",
        )


def check_text(text: TextScratch | TextFrom, key: str, names: Names) -> Iterator[Problem]:
    """Checks that heads divide the width, `kv_heads` divides the heads, `head_size` is even for RoPE, and a scaling
    of positions can be computed."""
    if not isinstance(text, TextScratch):
        return
    if text.head_size == 0:  # the schema could not derive it
        yield from _divides(key, "heads", text.heads, "width", text.width)
    elif text.head_size % 2:
        yield CONFLICT.at(
            f"{key}.head_size",
            got=str(text.head_size),
            expected="an even number, because rotary positions rotate pairs of channels",
            fix="Change `width`, `heads` or `head_size`.",
        )
    yield from _divides(key, "kv_heads", text.kv_heads, "heads", text.heads)
    if text.rope_scaling is not None:
        yield from _check_scaling(text, text.rope_scaling, key)


def _check_scaling(text: TextScratch, scaling: RopeScaling, key: str) -> Iterator[Problem]:
    at, kind = f"{key}.rope_scaling", scaling.kind
    if kind != "linear" and not scaling.original:
        expected, fix = f"the context before the scaling, for `{kind}`", "Add `original`."
        yield CONFLICT.at(f"{at}.original", got="0", expected=expected, fix=fix)
    elif kind == "dynamic" and text.context > scaling.original:
        expected = (
            f"at least the context {text.context}: lmmkit does not build the longer sequences of `dynamic`"
        )
        yield CONFLICT.at(
            f"{at}.original", got=str(scaling.original), expected=expected, fix="Lower `context`."
        )
    if kind == "llama3" and scaling.high <= scaling.low:
        expected = f"more than `low`, which is {scaling.low:g}"
        yield CONFLICT.at(
            f"{at}.high", got=f"{scaling.high:g}", expected=expected, fix="Raise `high`, or lower `low`."
        )
    if kind == "yarn" and text.rope_theta <= 1:
        got, fix = f"{text.rope_theta:g}", "Raise `rope_theta`."
        yield CONFLICT.at(f"{key}.rope_theta", got=got, expected="more than 1, for `yarn`", fix=fix)


def check_model(model: Model, key: str, names: Names) -> Iterator[Problem]:
    """Checks that an encoder has a connector, and that an image fits into the context, if both sizes are
    known before any file is read."""
    vision, text = model.vision, model.text
    if (vision is None) != (model.connector is None):
        there, lacks = ("vision", "connector") if vision is not None else ("connector", "vision")
        yield CONFLICT.at(
            f"{key}.{there}",
            got=f"`{there}` without `{lacks}`",
            expected="both, or neither for a text-only model",
            fix=f"Add `{lacks}`, or remove `{there}`.",
        )
    connector = model.connector
    if connector is not None and connector.kind == "none" and (connector.from_ or not connector.reduce):
        yield CONFLICT.at(
            f"{key}.connector.{'from' if connector.from_ else 'kind'}",
            got="no connector" + (" with a folder of weights" if connector.from_ else " and no `reduce`"),
            expected="with `kind: none` a plugin as `reduce`, which maps to the decoder's width, and no `from`",
            fix="Add `reduce` and remove `from`, or name another `kind`.",
        )
    if connector is not None:
        yield from _check_connector(connector, f"{key}.connector")
    reduce = connector.reduce if connector else None
    if reduce is not None:
        yield from check_known(f"{key}.connector.reduce", reduce, names.plugins, "plugins")
    elif isinstance(vision, VisionScratch):
        rows = (vision.image_size // vision.patch) ** 2
        if connector is not None:
            rows = connector.queries or rows // (connector.factor or 1) ** 2
        if rows >= text.context:
            yield CONFLICT.at(
                f"{key}.text.context",
                got=str(text.context),
                expected=f"more than the {rows} rows of one image",
                fix="Raise `context`, give an image fewer rows, or lower `image_size`.",
            )


def _check_connector(connector: ConnectorConfig, key: str) -> Iterator[Problem]:
    """Checks that a connector has the settings of its kind and no others, and no reducer beside fewer rows."""
    kind, own = connector.kind, CONNECTOR_SETTINGS.get(connector.kind, ())
    every = dict.fromkeys(name for names in CONNECTOR_SETTINGS.values() for name in names)
    for name in every:
        if name in own and getattr(connector, name) is None:
            got, expected = f"`{kind}` without `{name}`", f"a `{name}` for `{kind}`"
            yield CONFLICT.at(f"{key}.kind", got=got, expected=expected, fix=f"Add `{name}`.")
        elif name not in own and getattr(connector, name) is not None:
            kinds = " or ".join(f"`{each}`" for each, names in CONNECTOR_SETTINGS.items() if name in names)
            got, expected = f"`{name}` with `{kind}`", f"`{name}` for {kinds} only"
            yield CONFLICT.at(f"{key}.{name}", got=got, expected=expected, fix=f"Remove `{name}`.")
    if own and connector.reduce is not None:
        got, expected = f"`reduce` with `{kind}`", "`reduce` beside a connector with a row for each token"
        fix = "Remove `reduce`, or name another `kind`."
        yield CONFLICT.at(f"{key}.reduce", got=got, expected=expected, fix=fix)


def check_chat(chat: Chat, key: str, names: Names) -> Iterator[Problem]:
    """Checks that a template without a system prompt is given none."""
    if chat.template == "plain" and chat.system is not None:
        expected, fix = "no `system` with the template `plain`", "Remove `system`, or name another template."
        yield CONFLICT.at(f"{key}.system", got="a system prompt", expected=expected, fix=fix)


def check_fit(fit: ImageFit, key: str, names: Names) -> Iterator[Problem]:
    """Checks that an image can be cut into one of the grids, and that no grid is there twice; that the smallest native
    image has not too many patches."""
    if isinstance(fit, Native) and fit.max_patches < (least := fit.multiple**2):
        yield CONFLICT.at(
            f"{key}.max_patches", got=str(fit.max_patches), expected=f"at least {least}, the square of `multiple`",
            fix="Raise `max_patches`, or lower `multiple`.",
        )  # fmt: skip
    if not isinstance(fit, AnyRes):
        return
    for i, grid in enumerate(fit.grids):
        if grid in fit.grids[:i]:
            got, fix = f"{list(grid)} again", "Remove one of the two."
            yield CONFLICT.at(f"{key}.grids.{i}", got=got, expected="each grid once", fix=fix)
    if not fit.grids:
        yield OUT_OF_RANGE.at(
            f"{key}.grids", got="an empty list", expected="at least one grid",
            fix="Add a grid, or remove the key: the grids of LLaVA-NeXT are its default.",
        )  # fmt: skip
    elif not fit.used:
        least = min(lines * columns for lines, columns in fit.grids)
        yield CONFLICT.at(
            f"{key}.max_tiles", got=str(fit.max_tiles), expected=f"at least {least}: no grid has fewer tiles",
            fix="Raise `max_tiles`, or add a smaller grid.",
        )  # fmt: skip
