"""What views and needs of a plugin must look like: the fields of frozen classes have the types that they declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from lmmkit.api.needs import Need, Select
from lmmkit.api.sample import Image, ImageEdit, Role, Sample, Turn, View
from lmmkit.plugin_calls.guard import shown
from lmmkit.progress import plural

Wrong = tuple[str, str]
"""What is there, and what is expected."""
NUMBER = bool | int | float | np.bool_ | np.integer | np.floating
FLOATS = (torch.float32, torch.float64)
# a wrong word in these fields of a need has a code of the plan
OF_THE_PLAN = ("layer", "layers", "heads", "stage")
# the other fields are words, which the plan checks
OF_SELECT = ("view", "view_role", "token_name", "supervised")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def fits(value: object, hint: Any) -> bool:
    """Returns whether a value has a type. A list counts as a tuple, a truth value is no number."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in inside)
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in inside)
    if origin is tuple and isinstance(value, tuple | list):
        hints = inside[:1] * len(value) if inside[-1] is Ellipsis else inside
        return len(hints) == len(value) and all(map(fits, value, hints))
    if hint is ImageEdit:
        return callable(value)
    if hint in (int, float, bool):
        return type(value) is hint
    return isinstance(value, origin or hint)


def _wrong_field(holder: object, names: tuple[str, ...] = ()) -> tuple[str, object] | None:
    """Returns the first field of a frozen object (of `names`, if given) whose value has another type."""
    hints = _hints(type(holder))
    found = ((name, getattr(holder, name)) for name in hints if not names or name in names)
    return next(((name, value) for name, value in found if not fits(value, hints[name])), None)


def wrong_need(need: Need) -> Wrong | None:
    """Returns what is wrong with the fields of a need."""
    words = tuple(each.name for each in fields(need) if isinstance(getattr(need, each.name), str))
    checked = tuple(
        each.name for each in fields(need) if each.name not in OF_THE_PLAN or each.name not in words
    )
    if wrong := _wrong_field(need, checked):
        hint = _hints(type(need))[wrong[0]]
        expected = "a `Select`" if hint is Select else str(hint).replace("typing.", "")
        return f"{type(need).__name__} with {wrong[1]!r:.60} as `{wrong[0]}`", expected
    for select in (getattr(need, each.name) for each in fields(need)):
        if isinstance(select, Select) and (wrong := _wrong_field(select, OF_SELECT)):
            return f"Select({wrong[0]}={wrong[1]!r:.60})", "a text, or for `supervised` True or False"
    return None


def wrong_view(view: object) -> Wrong | None:
    """Returns what is wrong with a view."""
    if not isinstance(view, View):
        return f"a list with {shown(view)}", "a list of View"
    sample = view.sample
    if not isinstance(sample, Sample):
        return f"a view with {shown(sample)} as sample", "a `Sample`"
    for field in ("turns", "images"):
        if not isinstance(found := getattr(sample, field), tuple | list):
            return f"a view with {shown(found)} as `{field}` of its sample", "a tuple"
    for turn in sample.turns:
        if wrong := _wrong_turn(turn):
            return wrong
    for image in sample.images:
        if not isinstance(image, Image):
            return f"a view with {shown(image)} as image", "an `Image`"
        if bad := _wrong_field(image):
            return f"a view with {shown(bad[1])} as `Image.{bad[0]}`", _declared(Image, bad[0])
    if not sample.turns:
        return "a view without a turn", "at least one turn"
    counted = sum(turn.images for turn in sample.turns)
    if counted != len(sample.images):
        expected = "as many (`Turn.images`)"
        return f"a view with {plural(len(sample.images), 'image')}, whose turns have {counted}", expected
    if bad := _wrong_field(sample):
        return f"a view with {bad[1]!r:.60} as `{bad[0]}` of its sample", _declared(Sample, bad[0])
    if not isinstance(view.labels, Mapping):
        return f"a view with {shown(view.labels)} as labels", "a mapping from keys to numbers or arrays"
    return wrong_names(view.labels, "label")


def wrong_names(found: Mapping, what: str) -> Wrong | None:
    """Returns the first key of a mapping that is no name."""
    bad = [key for key in found if not isinstance(key, str) or not key]
    return (f"{bad[0]!r:.40} as the name of a {what}", "a text that is not empty") if bad else None


def _declared(cls: type, name: str) -> str:
    hint = _hints(cls)[name]
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _wrong_turn(turn: object) -> Wrong | None:
    if not isinstance(turn, Turn) or turn.role not in get_args(Role):
        return f"a view with the turn {turn!r:.80}", f"a `Turn` of role {' or '.join(get_args(Role))}"
    if not isinstance(turn.text, str):
        return f"a view with {shown(turn.text)} as `Turn.text`", "a text"
    if type(turn.images) is not int or turn.images < 0:
        expected = "the NUMBER of images of the turn; the images are in `Sample.images`"
        return f"a view with {shown(turn.images)} as `Turn.images`", expected
    if bad := _wrong_field(turn):
        return f"a view with {shown(bad[1])} as `Turn.{bad[0]}`", _declared(Turn, bad[0])
    places = list(turn.places)
    within = all(0 <= place <= len(turn.text) for place in places) and places == sorted(places)
    if places and (len(places) != turn.images or not within):
        expected = f"for each image its place in a text of {len(turn.text)} characters, in order"
        return f"a view with {turn.images} images and `Turn.places` {places!r:.60}", expected
    return None
