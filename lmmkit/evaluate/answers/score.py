"""Scores answers that another program wrote, without a model, and says how many of the questions they answer."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmmkit.errors import UserError
from lmmkit.errors.answers import DUPLICATE, OTHER_QUESTIONS
from lmmkit.evaluate.answers.foreign import ForeignAnswer
from lmmkit.evaluate.answers.outcome import Answered, outcome_of
from lmmkit.evaluate.answers.schema import OWN, Answer, data_sha, prompt_sha
from lmmkit.evaluate.answers.scorer import Scorer
from lmmkit.evaluate.benchmarks.benchmark import Item

NAMED = 5  # ids in a message
ASK_YES_NO = "please answer yes or no."  # the end of MME's questions, which LLaVA's prompts leave out
REPEATED = re.compile(r"#\d+$")  # the end of an item's id, if the official id is that of several items


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Holds the answers by item id, and the ids that did not fit. `by`: what the answers were matched by.
    `repeated`: answers that the file has twice, with one text."""

    texts: dict[str, str]
    by: str
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    repeated: tuple[str, ...]

    def notes(self) -> list[str]:
        """Returns a line for each kind of answer that did not fit, with some of their ids."""
        kinds = {
            "without an answer, counted as an empty one": self.missing,
            "of no question, not scored": self.extra,
            "twice with the same text, scored once": self.repeated,
        }
        return [
            f"{len(ids):,} {kind}: {', '.join(ids[:NAMED])}{' ...' if len(ids) > NAMED else ''}"
            for kind, ids in kinds.items()
            if ids
        ]


def matched(items: Sequence[Item], answers: Sequence[ForeignAnswer], where: str) -> Matched:
    """Returns the answers by item.

    They are matched by the first that fits most answers: the id, the id's last part, image and prompt, the prompt, or
    the question inside a prompt. Items of one id are distinguished by the prompt, else by their order. Answers without
    ids, as many as there are items, are matched by order alone if nothing else fits all. Raises `UserError` if
    no answer fits, or two different ones fit one item.
    """
    best: tuple[int, str, list[str | None]] = (0, "", [])
    for name, (of_item, of_answer) in KEYS.items():
        found = _by(items, answers, of_item, of_answer)
        n = len({id for id in found if id is not None})
        if n > best[0]:
            best = (n, name, found)
    n, by, found = best
    if n < len(items) == len(answers) and not any(answer.id for answer in answers):
        by, found = "order", [item.id for item in items]
    if not by:
        got = f"{len(answers):,} answers, such as to `{answers[0].id or answers[0].prompt[:60]}`"
        raise UserError(OTHER_QUESTIONS.at(where, got=got))
    texts: dict[str, str] = {}
    repeated, different, extra = [], [], []
    for answer, id in zip(answers, found, strict=True):
        if id is None:
            extra.append(answer.id or f"line {answer.place}")
        elif id in texts:
            (repeated if texts[id] == answer.text else different).append(id)
        else:
            texts[id] = answer.text
    if different:
        got = f"{len(different):,} more answers, to {', '.join(f'`{id}`' for id in different[:NAMED])}"
        raise UserError(DUPLICATE.at(where, got=got))
    missing = tuple(item.id for item in items if item.id not in texts)
    return Matched(texts=texts, by=by, missing=missing, extra=tuple(extra), repeated=tuple(repeated))


def score_answers(
    scorer: Scorer, items: Sequence[Item], found: Matched, *, task: str, split: str
) -> Answered:  # fmt: skip
    """Returns the figures and the coverage. A missing answer counts as an empty one."""
    data = data_sha(items)
    answers = {}
    for row, item in enumerate(items):
        text = found.texts.get(item.id, "")
        answer = Answer(
            task=task, split=split, data=data[:16], id=item.id, row=row, condition=OWN, question=item.prompt,
            images=tuple(item.images), cluster=item.cluster, groups=dict(item.groups),
            prompt_sha=prompt_sha(item.prompt, item.images), raw=text, gold=item.gold,
        )  # fmt: skip
        answers[answer.key] = answer.judged(scorer.verdict(item, text))
    outcome = outcome_of(items, scorer, (), answers)
    outcome.coverage.update(
        answered=len(found.texts),
        missing=len(found.missing),
        extra=len(found.extra),
        repeated=len(found.repeated),
    )
    return outcome


def _by(
    items: Sequence[Item], answers: Sequence[ForeignAnswer], of_item: Callable[[Item], object],
    of_answer: Callable[[ForeignAnswer], object],
) -> list[str | None]:  # fmt: skip
    """Returns the id of the item of each answer; None without one. If several items have one key, the prompt
    decides."""
    members: defaultdict[object, list[Item]] = defaultdict(list)
    for item in items:
        if key := of_item(item):
            members[key].append(item)
    keys = [of_answer(answer) for answer in answers]
    number, seen = Counter(keys), Counter[object]()
    out: list[str | None] = []
    for answer, key in zip(answers, keys, strict=True):
        fitting = members.get(key, []) if key else []
        if len(fitting) > 1 and not answer.prompt and number[key] == len(fitting):
            fitting = [fitting[seen[key]]]  # the only thing that differs is their order
        elif len(fitting) > 1:
            fitting = [item for item in fitting if _same_prompt(item.prompt, answer.prompt)]
        seen[key] += 1
        out.append(fitting[0].id if len(fitting) == 1 else None)
    return out


def _same_prompt(prompt: str, other: str) -> bool:
    """Returns whether a file's question is that of a prompt: one first line contains the other's."""
    ours, theirs = _first_line(prompt), _first_line(other)
    return bool(theirs) and (theirs in ours or ours in theirs)


def _plain(text: str) -> str:
    return " ".join(text.replace("<image>", " ").split()).lower()


def _first_line(text: str) -> str:
    lines = text.replace("<image>", " ").strip().split("\n")
    return _plain(lines[0]).removesuffix(ASK_YES_NO).rstrip()


def _name(path: str | None) -> str:
    return Path(path).name if path else ""


KEYS: dict[str, tuple[Callable[[Item], object], Callable[[ForeignAnswer], object]]] = {
    "id": (lambda item: REPEATED.sub("", item.id), lambda answer: answer.id),
    "id in lmmkit": (lambda item: item.id, lambda answer: answer.id),
    "last part of the id": (lambda item: item.id.rpartition("/")[2], lambda answer: answer.id),
    "image and prompt": (
        lambda item: (_name(next(iter(item.images), "")), _plain(item.prompt)),
        lambda answer: (_name(answer.image or answer.id), _plain(answer.prompt)) if answer.prompt else None,
    ),
    "image": (
        lambda item: _name(next(iter(item.images), "")),
        lambda answer: _name(answer.image or answer.id),
    ),
    "prompt": (lambda item: _plain(item.prompt), lambda answer: _plain(answer.prompt)),
    "first line of the prompt": (
        lambda item: _first_line(item.prompt),
        lambda answer: _first_line(answer.prompt),
    ),
}
