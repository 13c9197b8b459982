"""Rules of the section `stages`: data, length, parts, losses, learned tokens and validation of a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lmmkit.errors import Problem, did_you_mean
from lmmkit.errors.recipe import CONFLICT, OUT_OF_RANGE, UNKNOWN_NAME
from lmmkit.recipe.rules.names import Names, check_known
from lmmkit.recipe.stage import Length, Stage, Train, Validate, Weight


def check_sources(data: Mapping[str, float], key: str, names: Names) -> Iterator[Problem]:
    """Checks that a stage's sources exist."""
    for source in data:
        yield from check_known(f"{key}.{source}", source, names.data, "data")


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
        yield from check_known(at, term, ("next_token", *names.plugins), "plugins, or next_token")
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
        yield from check_known(f"{key}.by.{i}", name, names.plugins, "plugins")
        if name in by[:i]:
            yield CONFLICT.at(f"{key}.by.{i}", got=f"`{name}` again", expected="each once", fix="Remove one.")


def check_tokens(tokens: tuple[str, ...], key: str, names: Names) -> Iterator[Problem]:
    """Checks that the plugins of a stage's `tokens` exist."""
    for i, name in enumerate(tokens):
        yield from check_known(f"{key}.{i}", name, names.plugins, "plugins")


def check_validate(validate: Validate, key: str, names: Names) -> Iterator[Problem]:
    """Checks that the data and tasks of a validation exist, and that `best` is one of its metrics."""
    yield from check_known(f"{key}.data", validate.data, names.data, "data")
    for i, task in enumerate(validate.tasks):
        yield from check_known(f"{key}.tasks.{i}", task, names.tasks, "evaluate.tasks")
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
