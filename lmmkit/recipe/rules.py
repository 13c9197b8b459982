"""Rules between keys, as pure functions from a section of the recipe to problems.

Each rule reads one section, so a typo in another section does not hide its problems. `where` is a dotted
key; `read` adds file and line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lmmkit.api.sample import AnyRes, ImageFit, Native
from lmmkit.errors import Problem, did_you_mean
from lmmkit.errors.recipe import CONFLICT, NAME, OUT_OF_RANGE, UNKNOWN_NAME, WRONG_TYPE
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
from lmmkit.recipe.schema import Control, EmptyImage, Task
from lmmkit.recipe.stage import Length, Source, Stage, Train, Validate, Weight

RESERVED_NAMES = ("next_token", "main")  # the term and the view of the core


@dataclass(frozen=True)
class Names:
    """Holds the names that other keys may refer to."""

    plugins: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Names:
        """Returns the names from a mapping that may be invalid in all other respects."""

        def keys(*path: str) -> tuple[str, ...]:
            at: Any = raw
            for key in path:
                at = at.get(key) if isinstance(at, Mapping) else None
            return tuple(map(str, at)) if isinstance(at, Mapping) else ()

        return cls(plugins=keys("plugins"), data=keys("data"), tasks=keys("evaluate", "tasks"))


def _whole(key: str, name: str, value: int, of: str, over: int) -> Iterator[Problem]:
    if over % value:
        expected, fix = f"a divisor of {of} = {over}", f"Change `{name}` or `{of}`."
        yield CONFLICT.at(f"{key}.{name}", got=str(value), expected=expected, fix=fix)


def check_vision(
    vision: VisionScratch | VisionTimm | VisionFrom, key: str, names: Names
) -> Iterator[Problem]:
    """Checks that heads divide the width, patches divide the image, and the feature layer exists."""
    if not isinstance(vision, VisionScratch):
        return
    yield from _whole(key, "heads", vision.heads, "width", vision.width)
    yield from _whole(key, "patch", vision.patch, "image_size", vision.image_size)
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
        yield from _whole(key, "heads", text.heads, "width", text.width)
    elif text.head_size % 2:
        yield CONFLICT.at(
            f"{key}.head_size",
            got=str(text.head_size),
            expected="an even number, because rotary positions rotate pairs of channels",
            fix="Change `width`, `heads` or `head_size`.",
        )
    yield from _whole(key, "kv_heads", text.kv_heads, "heads", text.heads)
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
        yield from _known(f"{key}.connector.reduce", reduce, names.plugins, "plugins")
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


def check_plugins(plugins: Mapping[str, Mapping[str, Any]], key: str, names: Names) -> Iterator[Problem]:
    """Checks that instance names are not reserved, and that `use` is the name of a component."""
    for name, settings in plugins.items():
        if name in RESERVED_NAMES:
            got, expected = f"the instance name `{name}`", "a name that lmmkit does not use itself"
            yield NAME.at(f"{key}.{name}", got=got, expected=expected)
        use = settings.get("use", name)
        if not isinstance(use, str) or not use:
            expected, fix = "the name of a component", "Change the value."
            yield WRONG_TYPE.at(f"{key}.{name}.use", got=str(use), expected=expected, fix=fix)


def _known(key: str, name: str, known: tuple[str, ...], section: str) -> Iterator[Problem]:
    if name not in known:
        expected, nearest = f"a name under {section}", did_you_mean(name, known)
        yield UNKNOWN_NAME.at(key, got=f"`{name}`", expected=expected, nearest=nearest)


def check_source(source: Source, key: str, names: Names) -> Iterator[Problem]:
    """Checks that a records file has a folder of images, that shards, which contain images, have none, that only a
    source of kind `messages` maps columns, and only one of kind `vqa` has annotations. Records of kind `messages` may
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
    if source.kind != "messages" and (source.kind != "webdataset") == (source.images is None):
        expected = "a folder of images" if source.images is None else "no `images`: shards contain them"
        got = f"kind {source.kind} {'without' if source.images is None else 'with'} `images`"
        fix = "Add `images`." if source.images is None else "Remove `images`."
        yield CONFLICT.at(f"{key}.images" if source.images else key, got=got, expected=expected, fix=fix)


def check_sources(data: Mapping[str, float], key: str, names: Names) -> Iterator[Problem]:
    """Checks that a stage's sources exist."""
    for source in data:
        yield from _known(f"{key}.{source}", source, names.data, "data")


def check_length(length: Length, key: str, names: Names) -> Iterator[Problem]:
    """Checks that exactly one length is given."""
    if (length.epochs is None) == (length.steps is None):
        yield CONFLICT.at(
            key,
            got="neither epochs nor steps" if length.epochs is None else "both epochs and steps",
            expected="exactly one of epochs and steps",
            fix=f"Write {key} as {{steps: N}} or as {{epochs: N}}.",
        )


def check_train(train: Train, key: str, names: Names) -> Iterator[Problem]:
    """Checks that at least one part is trainable."""
    if not train.parts():
        fix = "Name vision, connector, text or plugins, such as `connector: {}`."
        yield CONFLICT.at(key, got="no part", expected="at least one trainable part", fix=fix)


def check_warmup(stage: Stage, key: str, names: Names) -> Iterator[Problem]:
    """Checks that a warm-up in steps is an integer and not longer than the stage."""
    warmup, steps = stage.optim.warmup, stage.length.steps
    at = f"{key}.optim.warmup"
    if warmup > 1 and warmup != int(warmup):
        expected = "a share below 1 or a whole number of steps"
        yield OUT_OF_RANGE.at(at, got=str(warmup), expected=expected, fix="Round the number.")
    elif steps is not None and warmup > steps:
        expected = f"at most the stage's {steps} steps"
        yield CONFLICT.at(at, got=f"{warmup:g} steps", expected=expected, fix="Shorten the warm-up.")


def check_losses(losses: Mapping[str, Weight], key: str, names: Names) -> Iterator[Problem]:
    """Checks that terms exist, that each weight has one form, and that one weight is above 0."""
    for term, weight in losses.items():
        at = f"{key}.{term}"
        yield from _known(at, term, ("next_token", *names.plugins), "plugins, or next_token")
        yield from _check_weight(weight, at)
        yield from _check_by(term, weight.by or (), at, names)
        if weight.per is not None and not weight.by:
            expected, fix = "`per` beside `by`, which names what weights rows", "Remove `per`."
            yield CONFLICT.at(f"{at}.per", got="`per` without `by`", expected=expected, fix=fix)
    if all(weight.constant_zero for weight in losses.values()):
        expected, fix = "a term with a weight above 0", "Give one term a weight above 0."
        yield CONFLICT.at(key, got="only weights of 0", expected=expected, fix=fix)


def _check_weight(weight: Weight, key: str) -> Iterator[Problem]:
    ramp = (weight.from_, weight.to)
    shapes = (weight.weight is not None, any(v is not None for v in (*ramp, weight.over)))
    if shapes == (True, False) or (shapes == (False, True) and None not in ramp):
        return
    yield CONFLICT.at(
        key,
        got="both a weight and a ramp" if all(shapes) else "an incomplete weight",
        expected="a number, or {weight, watch}, or {from, to, over, watch}",
        fix="Write one of the three.",
    )


def _check_by(term: str, by: tuple[str, ...], key: str, names: Names) -> Iterator[Problem]:
    """Checks that the plugins which weight the rows of a term exist, each once, and that it is `next_token`."""
    if by and term != "next_token":
        expected, fix = "`by` of next_token: it has rows", "Remove `by`."
        yield CONFLICT.at(f"{key}.by", got=f"`by` of {term}", expected=expected, fix=fix)
    for i, name in enumerate(by):
        yield from _known(f"{key}.by.{i}", name, names.plugins, "plugins")
        if name in by[:i]:
            yield CONFLICT.at(f"{key}.by.{i}", got=f"`{name}` again", expected="each once", fix="Remove one.")


def check_tokens(tokens: tuple[str, ...], key: str, names: Names) -> Iterator[Problem]:
    """Checks that the plugins of a stage's `tokens` exist."""
    for i, name in enumerate(tokens):
        yield from _known(f"{key}.{i}", name, names.plugins, "plugins")


def check_validate(validate: Validate, key: str, names: Names) -> Iterator[Problem]:
    """Checks that the data and tasks of a validation exist, and that `best` is one of its metrics."""
    yield from _known(f"{key}.data", validate.data, names.data, "data")
    for i, task in enumerate(validate.tasks):
        yield from _known(f"{key}.tasks.{i}", task, names.tasks, "evaluate.tasks")
    if validate.best is not None:
        task, _, metric = validate.best.partition("/")
        losses = ("loss", "next_token", *names.plugins)
        if task not in (validate.tasks if metric else losses):
            yield UNKNOWN_NAME.at(
                f"{key}.best",
                got=f"`{validate.best}`",
                expected="loss, a term, or TASK/FIGURE with a task of this section",
                nearest=did_you_mean(task, (*losses, *validate.tasks)),
            )


def check_task(task: Task, key: str, names: Names) -> Iterator[Problem]:
    """Checks that the source of a task exists, if it has one."""
    if task.data is not None:
        yield from _known(f"{key}.data", task.data, names.data, "data")


def check_controls(controls: tuple[Control, ...], key: str, names: Names) -> Iterator[Problem]:
    """Checks that there is one image at most for the control `empty`."""
    empty = [control.empty for control in controls if isinstance(control, EmptyImage)]
    if len(set(empty)) > 1:
        expected, fix = "one image for `empty`", "Keep one of them."
        yield CONFLICT.at(key, got=" and ".join(map(ascii, empty)), expected=expected, fix=fix)


# the keys to which each rule applies; `*` matches any name
RULES: dict[str, Callable[[Any, str, Names], Iterator[Problem]]] = {
    "model.vision": check_vision,
    "model.text": check_text,
    "model": check_model,
    "model.chat": check_chat,
    "model.chat.image_fit": check_fit,
    "plugins": check_plugins,
    "data.*": check_source,
    "data.*.image_fit": check_fit,
    "stages.*.data": check_sources,
    "stages.*.length": check_length,
    "stages.*.train": check_train,
    "stages.*": check_warmup,
    "stages.*.losses": check_losses,
    "stages.*.tokens": check_tokens,
    "stages.*.validate": check_validate,
    "evaluate.tasks.*": check_task,
    "evaluate.controls": check_controls,
}
