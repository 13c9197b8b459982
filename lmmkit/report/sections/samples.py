"""The questions that a page has in full, as many as its bytes allow."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmmkit.evaluate.answers.schema import CONDITIONS, OWN, Answer
from lmmkit.report.asked import RIGHT, AskedRuns, OfOne, kinds_of
from lmmkit.report.image_shelf import ImageShelf
from lmmkit.report.loaded_run import DRAWN
from lmmkit.report.page import as_data, byte_size
from lmmkit.runs.files import finite

MOST = 2_000  # questions, however small they are
SHRINK = 0.8
LONGEST = 10_000  # characters of a text
WITH_IMAGE = (OWN, "swapped", "empty")  # the conditions that show the image of a file


@dataclass(frozen=True, kw_only=True)
class ShownSamples:
    """Holds the samples on the page. `rows`: for the script. `of`: all common questions. `runs`: numbers of those whose
    answers are there. `conditions`: those of the answers, in their order."""

    rows: Sequence[dict[str, Any]]
    of: int
    runs: Sequence[int]
    conditions: Sequence[str]


def samples_of(asked: AskedRuns, shelf: ImageShelf, *, room: int) -> ShownSamples | None:
    """Returns as many samples as fit in `room` bytes with their images, which are placed on the shelf.

    If there is too little room, these are the questions on which runs differ, up to half of them, and an even spread of
    the others. None without answers.
    """
    runs = [i for i, run in enumerate(asked.of) if run.whole][:DRAWN]
    if not runs:
        return None
    first = asked.of[runs[0]].answers
    prompts = {id: answers[OWN].prompt_sha for id, answers in first.items()}
    ids = [
        id for id, sha in prompts.items()
        if all(id in asked.of[i].answers and asked.of[i].answers[id][OWN].prompt_sha == sha for i in runs[1:])
    ]  # fmt: skip
    conditions = [c for c in CONDITIONS if any(c in first[id] for id in ids)]
    differ = {id for id in ids if len({_is_right(asked.of[i].answers[id][OWN]) for i in runs}) > 1}
    most = min(len(ids), MOST)
    while True:
        picked = _picked(ids, differ, most)
        rows = {id: _row(asked, runs, conditions, id) for id in picked}
        paths = {path for row in rows.values() for path in row["paths"] if path}
        size = byte_size([as_data(row["data"]) for row in rows.values()]) + 16 * len(rows)
        if most == 0 or size + sum(map(shelf.cost, paths)) <= room:
            break
        most = int(most * SHRINK)
    placed = [
        row["data"] | {"p": [shelf.place(path) for path in row["paths"]]} for row in rows.values()
    ]  # fmt: skip
    return ShownSamples(rows=placed, of=len(ids), runs=runs, conditions=conditions)


def fits_of(asked: AskedRuns) -> list[str]:
    """Returns for each run which part of an image its model gets, and maps cover: pad (with bars), crop, or stretch,
    which is all of it, also of one that is cut into tiles or keeps its shape."""
    found = []
    for run in asked.of:
        prompt = run.header.get("prompt")
        fits = prompt.get("image_fit") if isinstance(prompt, dict) else None
        first = fits[0] if isinstance(fits, list) and fits else "pad"
        found.append(first if first in ("pad", "crop") else "stretch")
    return found


def _picked(ids: Sequence[str], differ: set[str], most: int) -> list[str]:
    if most >= len(ids):
        return list(ids)
    chosen = set(_spread([id for id in ids if id in differ], most // 2))
    chosen |= set(_spread([id for id in ids if id not in chosen], most - len(chosen)))
    return [id for id in ids if id in chosen]


def _spread(ids: Sequence[str], n: int) -> list[str]:
    """Returns n of the ids, evenly spread; all if there are fewer."""
    n = min(n, len(ids))
    return [ids[i * len(ids) // n] for i in range(n)]


def _row(asked: AskedRuns, runs: Sequence[int], conditions: Sequence[str], id: str) -> dict[str, Any]:
    """Returns a sample for the script, and the paths of its own and of another's image."""
    answers = [asked.of[i].answers[id] for i in runs]
    own = answers[0][OWN]
    data = {
        "k": id, "t": kinds_of(answers[0]), "q": _clipped(own.question), "g": _clipped(_gold(own.gold)),
        "m": own.majority and _clipped(own.majority),
        "a": [[_text(each, c) for c in conditions] for each in answers],
        "r": [[_score(each, c) for c in conditions] for each in answers],
        "h": [_attention(asked.of[i].attention.get(id)) for i in runs],
    }  # fmt: skip
    shown = [answers[0].get(c) if c in WITH_IMAGE else None for c in conditions]
    return {"data": data, "paths": [next(iter(each.images), None) if each else None for each in shown]}


def _text(answers: OfOne, condition: str) -> str | None:
    found = answers.get(condition)
    return None if found is None else _clipped(found.raw.strip())


def _clipped(text: str) -> str:
    """Returns the beginning of a text that would leave no room for others, with its length."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\u2026 ({len(text):,} characters)"


def _score(answers: OfOne, condition: str) -> float | None:
    found = answers.get(condition)
    return None if found is None else finite(found.score)


def _is_right(answer: Answer) -> bool:
    return (finite(answer.score) or 0.0) >= RIGHT


def _gold(gold: object) -> str:
    """Returns the right answers as text, each once."""
    if isinstance(gold, list):
        return " | ".join(dict.fromkeys(map(str, gold)))
    return "" if gold is None else str(gold)


def _attention(line: dict[str, Any] | None) -> list[Any] | None:
    """Returns [map, mass, even, peak, rows, columns]; None without a whole map."""
    if line is None:
        return None
    grid, figures = line.get("grid"), [finite(line.get(key)) for key in ("mass", "even", "peak")]
    if not isinstance(grid, list) or len(grid) != 2 or None in figures:
        return None
    try:
        shares = base64.b64decode(line["map"], validate=True)
    except (KeyError, TypeError, ValueError):
        return None
    if not all(type(n) is int and n > 0 for n in grid) or len(shares) != grid[0] * grid[1]:
        return None
    return [line["map"], *(round(each, 5) for each in figures if each is not None), *grid]
