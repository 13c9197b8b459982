"""Scores answers that another program wrote, without a model, and says how many of the questions they answer."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lmmkit.errors import UserError
from lmmkit.errors.answers import DUPLICATE, OTHER_QUESTIONS
from lmmkit.evaluate.answers.foreign import ForeignAnswer
from lmmkit.evaluate.answers.outcome import Answered, outcome_of
from lmmkit.evaluate.answers.schema import OWN, Answer, data_sha, prompt_sha
from lmmkit.evaluate.answers.scorer import Scorer
from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.option_letters import ASK_LETTER
from lmmkit.progress import plural

NAMED = 5  # ids in a message
ASK_YES_NO = "please answer yes or no."  # the end of MME's questions, which LLaVA's prompts leave out
REPEATED = re.compile(r"#\d+$")  # the end of an item's id, if the official id is that of several items


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Holds the answers by item id, and the ids that did not fit. `by`: what the answers were matched by.
    `repeated`: answers that the file has twice, with one text. `ordered`: items of which several are the same by all
    that the file has, so that the order of their answers decides. `failed`: the file notes that the model gave none."""

    texts: dict[str, str]
    by: str
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    repeated: tuple[str, ...]
    ordered: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Returns a line for each kind of answer that did not fit, with some of their ids."""
        kinds = {
            "without an answer, left out": self.missing,
            "of no question, not scored": self.extra,
            "twice with the same text, scored once": self.repeated,
            "distinguished by their order alone": self.ordered,
            "in which the program gave no answer": self.failed,
        }
        return [
            f"{len(ids):,} {kind}: {', '.join(ids[:NAMED])}{' ...' if len(ids) > NAMED else ''}"
            for kind, ids in kinds.items()
            if ids
        ]


def matched(items: Sequence[Item], answers: Sequence[ForeignAnswer], where: str) -> Matched:
    """Returns the answers by item.

    They are matched by the first that fits most items: the id, its folder and image, its last part, image and prompt,
    the prompt, or the question inside a prompt. Ids do not count if most prompts contradict them. Where several items
    fit, the groups and the prompt decide, else their order. One answer counts for several items that ask the same about
    the same image. Answers without ids, as many as there are items or items of one group, are matched by order alone if
    nothing else fits all. Raises `UserError` if no answer fits, or two different ones fit one item.
    """
    given = [answer for answer in answers if not answer.failed]
    best = max(
        (_fit(items, given, name) for name in KEYS), key=lambda fit: len(fit.items)
    )  # of equal ones the first
    if len(best.items) < len(given):
        best = _in_order(items, given, where) or best
    if not best.items:
        got = f"{plural(len(answers), 'answer')}, such as to `{answers[0].id or answers[0].prompt[:60]}`"
        raise UserError(OTHER_QUESTIONS.at(where, got=got))
    texts: dict[str, str] = {}
    repeated, different, extra = [], [], []
    for answer, ids in zip(given, best.found, strict=True):
        if not ids:
            extra.append(answer.id or f"line {answer.place}")
        for id in ids:
            if id in texts:
                (repeated if texts[id] == answer.text else different).append(id)
            else:
                texts[id] = answer.text
    if different:
        got = (
            f"{plural(len(different), 'more answer')}, to {', '.join(f'`{id}`' for id in different[:NAMED])}"
        )
        raise UserError(DUPLICATE.at(where, got=got))
    return Matched(
        texts=texts, by=best.by, missing=tuple(item.id for item in items if item.id not in texts), extra=tuple(extra),
        repeated=tuple(repeated), ordered=best.ordered,
        failed=tuple(answer.id or f"line {answer.place}" for answer in answers if answer.failed),
    )  # fmt: skip


def score_answers(
    scorer: Scorer, items: Sequence[Item], found: Matched, *, task: str, split: str
) -> Answered:  # fmt: skip
    """Returns the figures of the items that have an answer, and the coverage: how many of the items that is."""
    data = data_sha(items)
    answers = {}
    answered = [item for item in items if item.id in found.texts]
    row = {item.id: row for row, item in enumerate(items)}
    for item in answered:
        text = found.texts[item.id]
        answer = Answer(
            task=task, split=split, data=data[:16], id=item.id, row=row[item.id], condition=OWN, question=item.prompt,
            images=tuple(item.images), cluster=item.cluster, groups=dict(item.groups),
            prompt_sha=prompt_sha(item.prompt, item.images), raw=text, gold=item.gold,
        )  # fmt: skip
        answers[answer.key] = answer.judged(scorer.verdict(item, text))
    outcome = outcome_of(answered, scorer, (), answers)
    outcome.coverage.update(
        expected=len(items),
        missing=len(found.missing),
        extra=len(found.extra),
        repeated=len(found.repeated),
    )
    return outcome


def questions_of_figures(scorer: Scorer, items: Sequence[Item]) -> dict[str, int]:
    """Returns how many questions each figure has if all items are answered."""
    return {
        name: figure.n
        for name, figure in scorer.figures(items, [scorer.verdict(i, "") for i in items]).items()
    }


def groups_without_answers(items: Sequence[Item], found: Matched) -> dict[str, list[str]]:
    """Returns by kind the groups of items, such as the subsets of POPE, of which no item has an answer."""
    groups: dict[str, dict[str, bool]] = {}
    for item in items:
        for kind, group in item.groups.items():
            of_kind = groups.setdefault(kind, {})
            of_kind[group] = of_kind.get(group, False) or item.id in found.texts
    return {
        kind: without
        for kind, of_kind in groups.items()
        if (without := [group for group, any_answer in of_kind.items() if not any_answer])
    }


class _Fit(NamedTuple):
    """Holds the ids of the items of each answer, by one key; and the items that only their order distinguishes."""

    by: str
    found: list[tuple[str, ...]]
    ordered: tuple[str, ...] = ()

    @property
    def items(self) -> set[str]:
        return {id for ids in self.found for id in ids}


def _fit(items: Sequence[Item], answers: Sequence[ForeignAnswer], name: str) -> _Fit:
    of_item, of_answer = KEYS[name]
    members: defaultdict[object, list[Item]] = defaultdict(list)
    for item in items:
        if key := of_item(item):
            members[key].append(item)
    fitting = [
        _narrowed(members.get(key, []), answer) if (key := of_answer(answer)) else [] for answer in answers
    ]
    pairs = [
        (several[0], a) for several, a in zip(fitting, answers, strict=True) if len(several) == 1 and a.prompt
    ]
    if 2 * sum(_same_prompt(item.prompt, answer.prompt) for item, answer in pairs) < len(pairs):
        return _Fit(name, [()] * len(answers))
    found = [tuple(item.id for item in several) for several in fitting]
    times, seen, ordered = Counter(found), Counter[tuple[str, ...]](), []
    for i, (ids, several) in enumerate(zip(list(found), fitting, strict=True)):
        if len(ids) > 1 and times[ids] == len(ids):  # the only thing that differs is their order
            found[i] = (ids[seen[ids]],)
            seen[ids] += 1
            ordered += found[i]
        elif len(ids) > 1 and (times[ids] > 1 or not _one_question(several, answers[i])):
            found[i] = ()
    return _Fit(name, found, tuple(ordered))


def _one_question(fitting: Sequence[Item], answer: ForeignAnswer) -> bool:
    """Returns whether items ask the same about the same images, and the file names the groups of all of them."""
    named = all(answer.groups & set(item.groups.values()) for item in fitting)
    return named and len({(item.prompt, item.images) for item in fitting}) == 1


def _narrowed(fitting: list[Item], answer: ForeignAnswer) -> list[Item]:
    """Returns the items that have the answer's groups and prompt, of those that have its key."""
    if len(fitting) > 1 and answer.groups:
        fitting = [item for item in fitting if answer.groups & set(item.groups.values())] or fitting
    if len(fitting) > 1 and answer.prompt:
        fitting = [item for item in fitting if _same_prompt(item.prompt, answer.prompt)]
    return fitting


def _in_order(items: Sequence[Item], answers: Sequence[ForeignAnswer], where: str) -> _Fit | None:
    """Returns the items in their order: all, or those of the one group that has as many and the same questions."""
    if any(answer.id for answer in answers):
        return None
    parts = {"order": [*items]}
    for item in items:
        for group in item.groups.values():
            parts.setdefault(f"order in {group}", []).append(item)
    fitting: dict[tuple[str, ...], str] = {}
    for name, part in parts.items():
        if len(part) == len(answers) and all(
            not answer.prompt or _same_prompt(item.prompt, answer.prompt)
            for item, answer in zip(part, answers, strict=True)
        ):
            fitting.setdefault(tuple(item.id for item in part), name)
    if len(fitting) > 1:
        names = ", ".join(name.removeprefix("order in ") for name in fitting.values())
        got = f"{plural(len(answers), 'answer')} without ids and questions, as many as each of {names} has"
        raise UserError(OTHER_QUESTIONS.at(where, got=got))
    return next((_Fit(name, [(id,) for id in ids]) for ids, name in fitting.items()), None)


def _same_prompt(prompt: str, other: str) -> bool:
    """Returns whether a file's question is that of a prompt: one contains the first line of the other."""
    ours, theirs = _first_line(prompt), _first_line(other)
    return bool(theirs) and (theirs in _plain(prompt) or ours in _plain(other))


def _plain(text: str) -> str:
    return " ".join(text.replace("<image>", " ").split()).lower()


def _first_line(text: str) -> str:
    lines = text.replace("<image>", " ").strip().split("\n")
    return _plain(lines[0]).removesuffix(ASK_YES_NO).rstrip()


def _options(text: str) -> str:
    """Returns the question and the options in a prompt, without the context above and the request below."""
    lines = text.replace("<image>", " ").strip().split("\n")
    return _plain(" ".join(line for line in lines if not line.startswith(("Context: ", ASK_LETTER))))


def _name(path: str | None) -> str:
    return Path(path).name if path else ""


def _folder_and_stem(id: str) -> tuple[str, str] | None:
    """Returns the first folder of an id that is a path, and its last part without ending: MME's subtask and image."""
    folder, _, rest = REPEATED.sub("", id).partition("/")
    return (folder, Path(rest).stem) if rest else None


KEYS: dict[str, tuple[Callable[[Item], object], Callable[[ForeignAnswer], object]]] = {
    "id": (lambda item: item.id, lambda answer: answer.id),
    "official id": (lambda item: REPEATED.sub("", item.id), lambda answer: answer.id),
    "folder and image": (lambda item: _folder_and_stem(item.id), lambda answer: _folder_and_stem(answer.id)),
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
    "question and options": (
        lambda item: _options(item.prompt) if ASK_LETTER in item.prompt else None,
        lambda answer: _options(answer.prompt),
    ),
    "first line of the prompt": (
        lambda item: _first_line(item.prompt),
        lambda answer: _first_line(answer.prompt),
    ),
}
