"""Rules between keys, as pure functions: parts of a recipe -> faults.

Each looks at one part, so that a typo elsewhere does not hide what it would find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lmmkit.errors import did_you_mean
from lmmkit.recipe.model import Model, TextFrom, TextScratch, VisionFrom, VisionScratch, VisionTimm
from lmmkit.recipe.places import Fault
from lmmkit.recipe.schema import Task
from lmmkit.recipe.stage import Length, Source, Stage, Train, Validate, Weight

RESERVED = ("next_token", "main")  # the core's own term and view


@dataclass(frozen=True)
class Names:
    """The names that other keys may refer to."""

    plugins: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Names:
        """Reads the names from a mapping that may be wrong in every other way."""

        def keys(*path: str) -> tuple[str, ...]:
            at: Any = raw
            for key in path:
                at = at.get(key) if isinstance(at, Mapping) else None
            return tuple(map(str, at)) if isinstance(at, Mapping) else ()

        return cls(plugins=keys("plugins"), data=keys("data"), tasks=keys("evaluate", "tasks"))


def _whole(key: str, name: str, value: int, of: str, over: int) -> Iterator[Fault]:
    if over % value:
        mend = f"Change `{name}` or `{of}`."
        yield Fault(f"{key}.{name}", "conflict", str(value), f"a divisor of {of} = {over}", mend)


def check_vision(vision: VisionScratch | VisionTimm | VisionFrom, key: str, names: Names) -> Iterator[Fault]:
    """Heads divide the width, patches the picture; the feature layer exists."""
    if not isinstance(vision, VisionScratch):
        return
    yield from _whole(key, "heads", vision.heads, "width", vision.width)
    yield from _whole(key, "patch", vision.patch, "image_size", vision.image_size)
    depth = vision.depth
    if not -depth - 1 <= vision.feature_layer <= depth:
        yield Fault(
            f"{key}.feature_layer",
            "out-of-range",
            str(vision.feature_layer),
            f"{-depth - 1} to {depth}, for there are {depth} blocks",
            "Choose a layer that exists.",
        )


def check_text(text: TextScratch | TextFrom, key: str, names: Names) -> Iterator[Fault]:
    """Heads divide the width, key heads the heads; rotary positions need pairs of channels."""
    if not isinstance(text, TextScratch):
        return
    if text.head_size == 0:  # schema: could not be derived
        yield from _whole(key, "heads", text.heads, "width", text.width)
    elif text.head_size % 2:
        yield Fault(
            f"{key}.head_size",
            "conflict",
            str(text.head_size),
            "an even number, for rotary positions turn pairs of channels",
            "Change `width`, `heads` or `head_size`.",
        )
    yield from _whole(key, "kv_heads", text.kv_heads, "heads", text.heads)


def check_model(model: Model, key: str, names: Names) -> Iterator[Fault]:
    """An encoder comes with a connector; a picture fits into the context, where both are known
    before any file is read."""
    vision, text = model.vision, model.text
    if (vision is None) != (model.connector is None):
        there, lacks = ("vision", "connector") if vision is not None else ("connector", "vision")
        yield Fault(
            f"{key}.{there}",
            "conflict",
            f"`{there}` without `{lacks}`",
            "both, or neither for a model of text alone",
            f"Add `{lacks}`, or take `{there}` out.",
        )
    if isinstance(vision, VisionScratch):
        tokens = (vision.image_size // vision.patch) ** 2
        if tokens >= text.context:
            yield Fault(
                f"{key}.text.context",
                "conflict",
                str(text.context),
                f"more than the {tokens} tokens of one picture",
                "Raise `context` or `patch`, or lower `image_size`.",
            )


def check_plugins(plugins: Mapping[str, Mapping[str, Any]], key: str, names: Names) -> Iterator[Fault]:
    """Instance names are free; `use` is a component's name."""
    for name, settings in plugins.items():
        if name in RESERVED:
            yield Fault(
                f"{key}.{name}",
                "name",
                f"the instance name `{name}`",
                "another, for the core uses it",
                "Rename the instance, with `use:` for the component.",
            )
        use = settings.get("use", name)
        if not isinstance(use, str) or not use:
            yield Fault(f"{key}.{name}.use", "wrong-type", str(use), "a component's name", "Change it.")


def _known(key: str, name: str, known: tuple[str, ...], section: str) -> Iterator[Fault]:
    if name not in known:
        yield Fault(key, "unknown-name", f"`{name}`", f"a name under {section}", did_you_mean(name, known))


def check_source(source: Source, key: str, names: Names) -> Iterator[Fault]:
    """A records file comes with a folder of pictures; shards hold their own."""
    if (source.kind == "llava") == (source.images is None):
        want = "a folder of pictures" if source.images is None else "no `images`: shards hold their own"
        got = f"kind {source.kind} {'without' if source.images is None else 'with'} `images`"
        mend = "Add `images`." if source.images is None else "Take `images` out."
        yield Fault(f"{key}.images" if source.images else key, "conflict", got, want, mend)


def check_sources(data: Mapping[str, float], key: str, names: Names) -> Iterator[Fault]:
    """A stage's sources exist."""
    for source in data:
        yield from _known(f"{key}.{source}", source, names.data, "data")


def check_length(length: Length, key: str, names: Names) -> Iterator[Fault]:
    """One length is given, not two."""
    if (length.epochs is None) == (length.steps is None):
        yield Fault(
            key,
            "conflict",
            "neither" if length.epochs is None else "both epochs and steps",
            "exactly one of epochs and steps",
            f"Write {key} as {{steps: N}} or as {{epochs: N}}.",
        )


def check_train(train: Train, key: str, names: Names) -> Iterator[Fault]:
    """Something learns."""
    if not train.parts():
        yield Fault(
            key,
            "conflict",
            "no part",
            "at least one part that learns",
            "Name vision, connector, text or plugins, such as `connector: {}`.",
        )


def check_warmup(stage: Stage, key: str, names: Names) -> Iterator[Fault]:
    """A warm-up in steps is whole and no longer than the stage."""
    warmup, steps = stage.optim.warmup, stage.length.steps
    at = f"{key}.optim.warmup"
    if warmup > 1 and warmup != int(warmup):
        want = "a share below 1 or a whole number of steps"
        yield Fault(at, "out-of-range", str(warmup), want, "Round it.")
    elif steps is not None and warmup > steps:
        want = f"at most the stage's {steps}"
        yield Fault(at, "conflict", f"{warmup:g} steps", want, "Shorten it.")


def check_losses(losses: Mapping[str, Weight], key: str, names: Names) -> Iterator[Fault]:
    """Terms exist, weights have one shape, and one of them counts."""
    for term, weight in losses.items():
        at = f"{key}.{term}"
        yield from _known(at, term, ("next_token", *names.plugins), "plugins, or next_token")
        yield from _check_weight(weight, at)
    if all(weight.constant_zero for weight in losses.values()):
        mend = "Give one term a weight above 0."
        yield Fault(key, "conflict", "only weights of 0", "a term that counts", mend)


def _check_weight(weight: Weight, key: str) -> Iterator[Fault]:
    ramp = (weight.from_, weight.to)
    shapes = (weight.weight is not None, any(v is not None for v in (*ramp, weight.over)))
    if shapes == (True, False) or (shapes == (False, True) and None not in ramp):
        return
    yield Fault(
        key,
        "conflict",
        "both a weight and a ramp" if all(shapes) else "half a weight",
        "a number, or {weight, watch}, or {from, to, over, watch}",
        "Write one of the three.",
    )


def check_validate(validate: Validate, key: str, names: Names) -> Iterator[Fault]:
    """What is validated on exists, and the best is told by something measured."""
    yield from _known(f"{key}.data", validate.data, names.data, "data")
    for i, task in enumerate(validate.tasks):
        yield from _known(f"{key}.tasks.{i}", task, names.tasks, "evaluate.tasks")
    if validate.best is not None:
        task, _, metric = validate.best.partition("/")
        losses = ("loss", "next_token", *names.plugins)
        if task not in (validate.tasks if metric else losses):
            yield Fault(
                f"{key}.best",
                "unknown-name",
                f"`{validate.best}`",
                "loss, a term, or TASK/METRIC with a task of this section",
                did_you_mean(task, (*losses, *validate.tasks)),
            )


def check_task(task: Task, key: str, names: Names) -> Iterator[Fault]:
    """A task reads from one place, and the place exists."""
    if (task.data is None) == (task.files is None):
        yield Fault(
            key,
            "conflict",
            "neither data nor files" if task.data is None else "both data and files",
            "exactly one of data and files",
            "Name a source of data, or a folder of task files.",
        )
    if task.data is not None:
        yield from _known(f"{key}.data", task.data, names.data, "data")


# where each rule applies; `*` is any name
RULES: dict[str, Callable[[Any, str, Names], Iterator[Fault]]] = {
    "model.vision": check_vision,
    "model.text": check_text,
    "model": check_model,
    "plugins": check_plugins,
    "data.*": check_source,
    "stages.*.data": check_sources,
    "stages.*.length": check_length,
    "stages.*.train": check_train,
    "stages.*": check_warmup,
    "stages.*.losses": check_losses,
    "stages.*.validate": check_validate,
    "evaluate.tasks.*": check_task,
}
