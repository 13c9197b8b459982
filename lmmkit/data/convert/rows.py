"""Reads the good records of a source for a conversion, each with a marker for each image, and writes them in a form.

A list `lost` gets the name of each field of a record that a form cannot contain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lmmkit.api.sample import Image
from lmmkit.data.image_markers import MARKER
from lmmkit.data.sources.record_keys import WEIGHTS
from lmmkit.data.sources.records import Records

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True)
class TurnRow:
    """Holds a turn: `who` is `human`, `gpt` or `system`. `others`: its other keys."""

    who: str
    text: object
    others: Mapping[str, object]


@dataclass(frozen=True)
class Row:
    """Holds a record. `names`: the relative paths of its images, empty for one that has none. `others`: its other keys.
    `number`: in its source, without bad records. `notes`: what of it was left out when it was read."""

    number: int
    id: str | int
    system: object
    turns: tuple[TurnRow, ...]
    images: tuple[Image, ...]
    names: tuple[str, ...]
    others: Mapping[str, object]
    notes: tuple[str, ...]


def read_rows(records: Records) -> Iterator[Row]:
    """Yields the records of a source."""
    for i in range(len(records)):
        raw, record = records.read(i)
        value = raw.value if isinstance(raw.value, dict) else {}
        turns = [_turn(each) for each in value["conversations"]]
        human = next((n for n, turn in enumerate(turns) if turn.who == "human"), 0)
        if record.images and not any(turn.who == "human" and MARKER in str(turn.text) for turn in turns):
            first = turns[human]
            turns[human] = TurnRow(
                first.who, f"{MARKER}\n" * len(record.images) + str(first.text), first.others
            )
        key, id_ = records.indexed.key(i, record.key), value.get("id")
        others = {
            k: v
            for k, v in value.items()
            if k not in ("id", "system", "image", "images", "conversations") and v is not None
        }
        yield Row(
            i, id_ if isinstance(id_, str | int) and str(id_) == key else key, value.get("system"),
            tuple(turns), records.indexed.images(i, record.images), records.indexed.names(i, record.images), others,
            raw.notes,
        )  # fmt: skip


def _turn(value: Mapping[str, object]) -> TurnRow:
    who = value.get("from", value.get("role"))
    text = value["value"] if "value" in value else value.get("content")
    read = {"from" if "from" in value else "role", "value" if "value" in value else "content"}
    others = {k: v for k, v in value.items() if k not in read and v is not None}
    return TurnRow(str(who), text, {k: int(v) if k in WEIGHTS else v for k, v in others.items()})  # type: ignore[call-overload]


def llava_value(row: Row, names: tuple[str, ...], lost: list[str]) -> dict[str, object]:
    """Returns a record in LLaVA's form. `names`: those of its images that it contains."""
    value: dict[str, object] = {"id": row.id}
    if names:
        value["image"] = names[0] if len(names) == 1 else list(names)
    if row.system is not None:
        value["system"] = row.system
    value["conversations"] = [
        {"from": turn.who, "value": turn.text, **_kept(turn.others, ("from", "value"), " of a turn", lost)}
        for turn in row.turns
    ]
    return value | _kept(row.others, (), "", lost)


def messages_value(row: Row, names: tuple[str, ...], lost: list[str]) -> dict[str, object]:
    """Returns a record of kind `messages`."""
    value: dict[str, object] = {"id": row.id}
    if row.system is not None:
        value["system"] = row.system
    taken = ("role", "from", "content", "value")
    value["messages"] = [
        {"role": ROLES[turn.who], "content": turn.text, **_kept(turn.others, taken, " of a turn", lost)}
        for turn in row.turns
    ]
    if names:
        value["images"] = list(names)
    return value | _kept(row.others, ("messages",), "", lost)


def _kept(
    others: Mapping[str, object], taken: tuple[str, ...], of: str, lost: list[str]
) -> dict[str, object]:
    """Returns the other keys that a form can contain. `taken`: keys that have a meaning in it."""
    found = {}
    for key, value in others.items():
        if key in taken:
            lost.append(f"`{key}`{of}: this form has another `{key}`")
        elif (reason := unfit(value)) is not None:
            lost.append(f"`{key[:40]}`{of}: {reason}")
        else:
            found[key] = value
    return found


def unfit(value: object) -> str | None:
    """Returns why JSON cannot contain a value; None if it can."""
    if isinstance(value, dict | list | tuple):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return next((reason for reason in map(unfit, parts) if reason is not None), None)
    if isinstance(value, float):
        return None if math.isfinite(value) else "a number that is not finite"
    return (
        None
        if value is None or isinstance(value, str | int)
        else f"a {type(value).__name__}, no value of JSON"
    )
