"""Questions with language priors that mislead: each question has one usual answer, as in VQA-CP.

Images are alike in every split; which questions are asked differs. A *key* is a kind of question and what it names,
such as ("place/colour", "red"). Each key has one usual answer. Training asks so that a share `bias` of the questions
of a key has its usual answer; a balanced split asks so that all answers of a key are about equally frequent.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lmmkit.scenes.questions import NUMBERS, PATTERNS, Fact
from lmmkit.scenes.scene import CENTRE, COLOURS, CORNERS, SHAPES, THINGS, Scene, Thing

PLACES = (*CORNERS, CENTRE)


@dataclass(frozen=True, kw_only=True)
class QuestionKind:
    """Describes a kind of question: its wordings, what it can name, and what can be the answer."""

    patterns: tuple[str, ...]
    slots: tuple[str, ...]
    answers: tuple[str, ...]


KINDS = {
    "colour/place": QuestionKind(patterns=PATTERNS["colour/place"], slots=PLACES, answers=COLOURS),
    "shape/place": QuestionKind(patterns=PATTERNS["shape/place"], slots=PLACES, answers=SHAPES),
    "place/colour": QuestionKind(patterns=PATTERNS["position/colour"], slots=COLOURS, answers=PLACES),
    "shape/colour": QuestionKind(patterns=PATTERNS["shape/colour"], slots=COLOURS, answers=SHAPES),
    # Nothing is named: the wording itself is the key.
    "count": QuestionKind(
        patterns=("{}",), slots=PATTERNS["count/all"], answers=NUMBERS[THINGS[0] : THINGS[-1] + 1]
    ),
    "presence": QuestionKind(
        patterns=tuple(pattern.format("{} objects") for pattern in PATTERNS["presence"]),
        slots=COLOURS,
        answers=("yes", "no"),
    ),
}
Key = tuple[str, str]
"""Kind and slot."""


@dataclass(frozen=True, kw_only=True)
class PriorQuestion:
    """Holds a question and its answer; `thing`: the object that it is about, if it is about one. `states`, `asks`:
    the facts that its text states, and those that it asks for."""

    kind: str
    slot: str
    text: str
    answer: str
    thing: Thing | None = None
    states: frozenset[Fact] = frozenset()
    asks: frozenset[Fact] = frozenset()

    @property
    def key(self) -> Key:
        """Returns what has one usual answer."""
        return self.kind, self.slot


def usual_answers(seed: int, kinds: Iterable[str]) -> dict[Key, str]:
    """Returns the usual answer of each key.

    The answers of a kind are dealt evenly over its keys, so the kind alone does not tell the answer.
    """
    usual: dict[Key, str] = {}
    for kind in kinds:
        rng = random.Random(f"lmmkit priors/{seed}/{kind}")
        deck: list[str] = []
        for slot in KINDS[kind].slots:
            deck = deck or rng.sample(KINDS[kind].answers, len(KINDS[kind].answers))
            usual[kind, slot] = deck.pop()
    return usual


def text_of(kind: str, slot: str, rng: random.Random) -> str:
    """Returns a question in one of its wordings."""
    return rng.choice(KINDS[kind].patterns).format(slot)


def prior_questions(scene: Scene, kinds: Sequence[str], rng: random.Random) -> Iterator[PriorQuestion]:
    """Yields all questions of these kinds about a scene. The wording is drawn from `rng`."""

    def make(kind: str, slot: str, answer: str, **more) -> Iterator[PriorQuestion]:
        if kind in kinds:
            yield PriorQuestion(kind=kind, slot=slot, text=text_of(kind, slot, rng), answer=answer, **more)

    def facts(*pairs: Fact) -> frozenset[Fact]:
        return frozenset(pairs)

    for i, thing in enumerate(scene.things):
        colour, shape, place = (facts((i, name)) for name in ("colour", "shape", "place"))
        yield from make("colour/place", thing.place, thing.colour, thing=thing, states=place, asks=colour)
        yield from make("shape/place", thing.place, thing.shape, thing=thing, states=place, asks=shape)
        yield from make("place/colour", thing.colour, thing.place, thing=thing, states=colour, asks=place)
        yield from make("shape/colour", thing.colour, thing.shape, thing=thing, states=colour, asks=shape)
    for wording in KINDS["count"].slots:
        yield from make("count", wording, NUMBERS[len(scene.things)], asks=facts((-1, "count")))
    there = {thing.colour: i for i, thing in enumerate(scene.things)}
    for colour in COLOURS:
        if colour in there:
            i = there[colour]
            yield from make("presence", colour, "yes", thing=scene.things[i], asks=facts((i, "colour")))
        else:
            yield from make("presence", colour, "no", asks=facts((-1, colour)))


class PriorAsker:
    """Chooses questions such that of each key a share `bias` has the usual answer, exact to one question at any time.

    `bias` None: the share is that of one answer among all of the key. Kinds, and the answers of a key, stay even.
    """

    def __init__(self, usual: Mapping[Key, str], bias: float | None) -> None:
        self.usual, self.bias = usual, bias
        self._kinds: Counter[str] = Counter()
        self._sorts: Counter[tuple[Key, bool]] = Counter()
        self._answers: Counter[tuple[Key, str]] = Counter()

    def is_usual(self, question: PriorQuestion) -> bool:
        """Returns whether the answer is the usual one of its key."""
        return question.answer == self.usual[question.key]

    def ask(self, scene: Scene, kinds: Sequence[str], number: int, rng: random.Random) -> list[PriorQuestion]:
        """Returns up to `number` questions in random order. None asks for a fact that another one gives away."""
        pool = list(prior_questions(scene, kinds, rng))
        asked: list[PriorQuestion] = []
        known: set[Fact] = set()
        while len(asked) < number:
            due = [q for q in pool if not q.asks & known and self._is_due(q)]
            if not due:
                break
            question = min(
                due, key=lambda q: (self._kinds[q.kind], self._answers[q.key, q.answer], rng.random())
            )
            asked.append(question)
            known |= question.states | question.asks
            self._kinds[question.kind] += 1
            self._sorts[question.key, self.is_usual(question)] += 1
            self._answers[question.key, question.answer] += 1
        rng.shuffle(asked)
        return asked

    def _is_due(self, question: PriorQuestion) -> bool:
        """Returns whether the next question of this key is one of its sort, usual or not."""
        key = question.key
        share = 1 / len(KINDS[question.kind].answers) if self.bias is None else self.bias
        asked = self._sorts[key, True] + self._sorts[key, False]
        return (self._sorts[key, True] < share * (asked + 1)) == self.is_usual(question)
