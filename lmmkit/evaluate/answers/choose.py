"""Chooses answers to look at, and shows them as text of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from lmmkit.evaluate.answers.schema import CONDITIONS, OWN, Answer

WIDTH = 80
Which = Literal["wrong", "changed", "unparsed", "all"]
OfOne = dict[str, Answer]
"""The answers to one question by condition."""


def chosen(answers: Sequence[Answer], which: Which) -> list[OfOne]:
    """Returns the answers of each question that is `wrong` (score below 1), `changed` (another answer with a
    blank, swapped or no image), `unparsed`, or any."""
    by_id: dict[str, OfOne] = {}
    for answer in answers:
        by_id.setdefault(answer.id, {})[answer.condition] = answer
    return [found for found in by_id.values() if OWN in found and CHOICES[which](found)]


def _changed(found: OfOne) -> bool:
    own = found[OWN]
    return any((other.parsed or other.raw) != (own.parsed or own.raw) for other in found.values())


def _wrong(found: OfOne) -> bool:
    score = found[OWN].score
    return score is not None and score < 1


CHOICES: dict[str, Callable[[OfOne], bool]] = {
    "wrong": _wrong,
    "changed": _changed,
    "unparsed": lambda found: found[OWN].parsed is None,
    "all": lambda found: True,
}


def as_text(found: OfOne) -> Iterator[str]:
    """Yields lines of at most `WIDTH` characters: the question, the images, the right answer, each answer."""
    own = found[OWN]
    yield from _wrapped(own.id + "".join(f"  {kind}: {name}" for kind, name in own.groups.items()), "")
    yield from _wrapped(" ".join(own.question.split()), "  question  ")
    for image in own.images:
        yield from _wrapped(Path(image).name, "  image     ")
    if own.gold is not None:
        yield from _wrapped(_plain(own.gold), "  right     ")
    if own.majority is not None:
        yield from _wrapped(own.majority, "  majority  ")
    for condition in CONDITIONS:
        if (answer := found.get(condition)) is not None:
            score = "" if answer.score is None else f"  [{answer.score:g}]"
            read = "" if answer.parsed == answer.raw.strip() else f"  (read as {answer.parsed})"
            cut = "  (cut off)" if answer.hit_max_tokens else ""
            yield from _wrapped(f"{' '.join(answer.raw.split())}{read}{score}{cut}", f"  {condition:8}  ")


def _plain(gold: object) -> str:
    if isinstance(gold, list):
        return " | ".join(dict.fromkeys(map(str, gold)))
    return str(gold)


def _wrapped(text: str, label: str) -> list[str]:
    text = "".join(c if c.isprintable() else "?" for c in text)
    return textwrap.wrap(text, WIDTH, initial_indent=label, subsequent_indent=" " * len(label)) or [
        label.rstrip()
    ]
