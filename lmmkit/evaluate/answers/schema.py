"""The schema of `answers.jsonl`, one line for each answer, and of `answers.json`, which describes them all.

docs/evaluation.md lists the fields. A change of their meaning raises `FORMAT`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lmmkit.errors import UserError
from lmmkit.errors.answers import DAMAGED
from lmmkit.evaluate.benchmarks.benchmark import Item, Verdict
from lmmkit.runs.files import finite

FORMAT = 1
OWN = "own"
CONDITIONS = (OWN, "blank", "black", "swapped", "none", "empty")
"""The images of a question: its own, one of a single colour (two kinds), another item's, none, or a given empty one."""
GROUPS = ("type", "prior")
"""The fields of a record that divide the questions of a source into groups with figures of their own, in this order."""
AnswerKey = tuple[str, str]
"""(condition, id) of an answer."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Holds one line of `answers.jsonl`.

    `row`: the place of the item in the official order. `data`, `prompt_sha`: the first digits of the SHA-256 of
    all items, and of the item's prompt with its images' names. `raw`: the generated text. `parsed` to
    `fallback`: as in `Verdict`. `majority`: the answer of the majority baseline, if known.
    """

    task: str
    split: str
    data: str
    id: str
    row: int
    condition: str
    question: str
    images: tuple[str, ...]
    cluster: str
    groups: Mapping[str, str] = field(default_factory=dict)
    prompt_sha: str
    raw: str
    parsed: str | None = None
    gold: Any = None
    score: float | None = None
    lenient: float | None = None
    fallback: bool = False
    n_new_tokens: int | None = None
    hit_max_tokens: bool | None = None
    majority: str | None = None

    @property
    def key(self) -> AnswerKey:
        """Returns what is unique in a file."""
        return self.condition, self.id

    def judged(self, verdict: Verdict) -> Answer:
        """Returns the answer with what a scorer read from it."""
        return replace(self, **asdict(verdict))

    def as_line(self) -> str:
        """Returns the line, with its newline."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


FIELDS = tuple(each.name for each in fields(Answer))


def answer_of(line: bytes | str, where: str) -> Answer:
    """Returns the answer of a line. Raises `UserError` for anything else."""
    try:
        raw = json.loads(line)
        answer = Answer(**{**raw, "images": tuple(raw["images"])})
        if not isinstance(raw["images"], list) or not _is_sound(answer):
            raise ValueError("a field of another type")
        return answer
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        got = f"no answer ({error})"
        raise UserError(DAMAGED.at(where, got=got, fields=", ".join(FIELDS))) from None


def _is_sound(answer: Answer) -> bool:
    """Returns whether the fields that are computed with or shown have their types."""
    known = (answer.id, answer.raw, answer.question, answer.cluster, answer.prompt_sha, *answer.images)
    texts = (*known, *(text for text in (answer.parsed, answer.majority) if text is not None))
    groups = answer.groups.values() if isinstance(answer.groups, dict) else (None,)
    numbers = (number for number in (answer.score, answer.lenient) if number is not None)
    return (
        answer.condition in CONDITIONS
        and all(isinstance(text, str) for text in (*texts, *groups))
        and all(finite(number) is not None for number in numbers)
    )


def data_sha(items: Iterable[Item]) -> str:
    """Returns the SHA-256 of all items. Moving the files does not change it: of an image only its name counts."""
    sha = hashlib.sha256()
    for item in items:
        content = [
            item.id,
            item.prompt,
            [Path(i).name for i in item.images],
            item.gold,
            item.cluster,
            dict(item.groups),
        ]
        sha.update(json.dumps(content, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return sha.hexdigest()


def prompt_sha(prompt: str, images: Sequence[str]) -> str:
    """Returns the first digits of the SHA-256 of a prompt and the names of its images."""
    content = json.dumps([prompt, [Path(image).name for image in images]], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
