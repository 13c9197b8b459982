"""Questions with one right answer each, chosen so that guessing without the image scores low.

`candidates` yields the possible questions about a scene. An `Asker` chooses from them. It balances the
types, the kinds within a type and the answers of a kind over the data set.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from lmmkit.scenes.scene import COLOURS, SHAPES, Scene, Thing

TYPES = ("colour", "shape", "position", "count", "relation", "presence")
NUMBERS = ("zero", "one", "two", "three", "four")
PLURAL = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}

# How often a kind is asked within its type. Three of four negative questions name a colour that the
# scene does not have. One of four names an absent thing whose colour or shape other things have.
KIND_WEIGHTS = {
    "colour/place": 1,
    "shape/colour": 2,
    "shape/place": 1,
    "position/colour": 1,
    "count/all": 1,
    "count/colour": 1,
    "relation/next": 1,
    "presence/yes": 4,
    "presence/no": 3,
    "presence/near": 1,
}
PATTERNS = {
    "colour/place": ("What colour is the object in the {}?", "Which colour is in the {}?"),
    "shape/colour": ("What shape is the {} object?", "Which shape is {}?"),
    "shape/place": ("What shape is the object in the {}?", "Which shape is in the {}?"),
    "position/colour": ("Where is the {} object?", "Where do you see the {} object?"),
    "count/all": ("How many objects are there?", "How many objects do you see?"),
    "count/colour": ("How many {} objects are there?", "How many {} objects do you see?"),
    "relation/next": ("What is directly {}?", "Which object is directly {}?"),
    "presence": ("Are there {}?", "Do you see {}?"),
}


Fact = tuple[int, str]  # the index of a thing and one of its attributes: "colour", "shape" or "place"


@dataclass(frozen=True, kw_only=True)
class Question:
    """Holds a question and its answer, the facts that its text states and the facts that it asks for."""

    kind: str
    text: str
    answer: str
    states: frozenset[Fact] = frozenset()
    asks: frozenset[Fact] = frozenset()

    @property
    def type(self) -> str:
        """Returns the type, one of `TYPES`: "colour" for the kind "colour/place"."""
        return self.kind.split("/")[0]


class Asker:
    """Chooses questions. Counts what it chose, to keep types, kinds and answers balanced."""

    def __init__(self) -> None:
        self._types: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._answers: Counter[tuple[str, str]] = Counter()

    def ask(self, scene: Scene, number: int, rng: random.Random) -> list[Question]:
        """Returns up to `number` questions of different types, in random order.

        If possible, no question asks for a fact that earlier questions or answers state. The model could
        copy such an answer from the conversation without using the image.
        """
        pool = list(candidates(scene, rng))
        types = sorted({question.type for question in pool}, key=TYPES.index)
        types = sorted(types, key=lambda name: (self._types[name], rng.random()))[:number]
        rng.shuffle(types)
        asked = []
        known: set[Fact] = set()
        for name in types:
            question = self._best([q for q in pool if q.type == name], known, rng)
            asked.append(question)
            known |= question.states | question.asks
            self._types[question.type] += 1
            self._kinds[question.kind] += 1
            self._answers[question.kind, question.answer] += 1
        return asked

    def _best(self, pool: list[Question], known: set[Fact], rng: random.Random) -> Question:
        def rank(question: Question) -> tuple[float, ...]:
            repeated = len(question.asks & known)
            share = self._kinds[question.kind] / KIND_WEIGHTS[question.kind]
            used = self._answers[question.kind, question.answer]
            # A yes states more facts than a no. Presence balances the kinds first, else most answers are no.
            first = (share, repeated) if question.type == "presence" else (repeated, share)
            return (*first, used, rng.random())

        return min(pool, key=rank)


def candidates(scene: Scene, rng: random.Random) -> Iterator[Question]:
    """Yields questions that have one clear answer in `scene`. The wording is drawn from `rng`."""

    def make(
        kind: str, slot: str, answer: str, states: Iterable[Fact] = (), asks: Iterable[Fact] = ()
    ) -> Question:
        patterns = PATTERNS.get(kind) or PATTERNS["presence"]
        text = rng.choice(patterns).format(slot)
        return Question(kind=kind, text=text, answer=answer, states=frozenset(states), asks=frozenset(asks))

    things = scene.things
    colours = Counter(thing.colour for thing in things)
    for i, thing in enumerate(things):
        colour, shape, place = (i, "colour"), (i, "shape"), (i, "place")
        # Questions identify a thing by its colour or its place. Finding it by its shape is too hard for
        # such a small model in a few minutes of training.
        yield make("colour/place", thing.place, thing.colour, [place], [colour])
        yield make("shape/colour", thing.colour, thing.shape, [colour], [shape])
        yield make("shape/place", thing.place, thing.shape, [place], [shape])
        yield make("position/colour", thing.colour, thing.place, [colour], [place])
        for j, other in enumerate(things):
            side = direction(thing, other)
            if side:
                slot = f"{side} the {thing.name}"
                asks = [(j, "colour"), (j, "shape")]
                yield make("relation/next", slot, other.name, [colour, shape], asks)
    yield make("count/all", "", NUMBERS[len(things)])
    for colour in COLOURS:
        yield make("count/colour", colour, NUMBERS[colours[colour]])
    yield from _presence(things, rng, make)


def direction(thing: Thing, other: Thing) -> str:
    """Returns where `other` is relative to `thing`, such as "left of"; "" for diagonal or equal places."""
    if thing.place == other.place or " " not in thing.place:
        return ""
    row, column = thing.place.split()
    other_row, other_column = other.place.split()
    if row == other_row:
        return f"{other_column} of"
    if column == other_column:
        return "below" if other_row == "bottom" else "above"
    return ""


def _presence(
    things: tuple[Thing, ...], rng: random.Random, make: Callable[..., Question]
) -> Iterator[Question]:
    """Yields one question of each presence kind. A quarter of the yes and of the no questions name colour
    and shape ("red bars"), the others a colour ("red objects"), so the wording does not reveal the answer."""
    shapes = {thing.shape for thing in things}
    colours = {thing.colour for thing in things}
    names = {thing.name for thing in things}
    i = rng.randrange(len(things))
    colour, shape = (i, "colour"), (i, "shape")
    if rng.random() < 0.25:
        yield make(
            "presence/yes", f"{things[i].colour} {PLURAL[things[i].shape]}", "yes", asks=[colour, shape]
        )
    else:
        yield make("presence/yes", f"{things[i].colour} objects", "yes", asks=[colour])
    yield make("presence/no", f"{rng.choice([c for c in COLOURS if c not in colours])} objects", "no")
    pairs = [(c, s) for c in COLOURS for s in SHAPES]
    both = [p for p in pairs if p[0] in colours and p[1] in shapes]
    either = [p for p in pairs if p[0] in colours or p[1] in shapes]
    near = [f"{c} {PLURAL[s]}" for c, s in both if f"{c} {s}" not in names]
    near = near or [f"{c} {PLURAL[s]}" for c, s in either if f"{c} {s}" not in names]
    yield make("presence/near", rng.choice(near), "no")
