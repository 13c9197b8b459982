"""Questions with one right answer each, chosen so that no answer pays without the picture.

`candidates` lists what may be asked of a scene; an `Asker` chooses, keeping types, kinds of a
type and answers of a kind equally frequent over the whole data set.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lmmkit.scenes.scene import COLOURS, SHAPES, Scene, Thing

TYPES = ("colour", "shape", "position", "count", "relation", "presence")
NUMBERS = ("zero", "one", "two", "three", "four")
PLURAL = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}

# How often a kind is asked within its type. Of the negatives, half name a shape or a colour that
# is nowhere and half an absent thing whose colour, shape or both are there on other things.
KINDS = {
    "colour/shape": 1,
    "colour/place": 1,
    "shape/colour": 1,
    "shape/place": 1,
    "position/shape": 1,
    "position/colour": 1,
    "position/name": 2,
    "count/all": 1,
    "count/shape": 1,
    "count/colour": 1,
    "relation/next": 1,
    "presence/yes": 2,
    "presence/no": 1,
    "presence/near": 1,
}
PATTERNS = {
    "colour/shape": ("What colour is the {}?", "Which colour does the {} have?"),
    "colour/place": ("What colour is the object in the {}?", "Which colour is in the {}?"),
    "shape/colour": ("What shape is the {} object?", "Which shape is {}?"),
    "shape/place": ("What shape is the object in the {}?", "Which shape is in the {}?"),
    "position/shape": ("Where is the {}?", "Where do you see the {}?"),
    "position/colour": ("Where is the {} object?", "Where do you see the {} object?"),
    "position/name": ("Where is the {}?", "Where do you see the {}?"),
    "count/all": ("How many objects are there?", "How many objects do you see?"),
    "count/shape": ("How many {} are there?", "How many {} do you see?"),
    "count/colour": ("How many {} objects are there?", "How many {} objects do you see?"),
    "relation/next": ("What is directly {}?", "Which object is directly {}?"),
    "presence": ("Is there a {}?", "Do you see a {}?", "Is there a {} in the picture?"),
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, its answer, and the things (by index) that the two of them name."""

    kind: str
    text: str
    answer: str
    about: tuple[int, ...] = ()

    @property
    def type(self) -> str:
        """One of `TYPES`: "colour" of "colour/shape"."""
        return self.kind.split("/")[0]


class Asker:
    """Chooses questions; remembers what it chose, so that shares and answers stay even."""

    def __init__(self) -> None:
        self._types: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._answers: Counter[tuple[str, str]] = Counter()

    def ask(self, scene: Scene, number: int, rng: random.Random) -> list[Question]:
        """Up to `number` questions of different types, in random order.

        A thing that one question named is left alone by the next while there is another: its
        answer could be read from the conversation instead of the picture.
        """
        asked: list[Question] = []
        named: Counter[int] = Counter()
        pool = list(candidates(scene, rng))
        while pool and len(asked) < number:
            open_types = sorted({question.type for question in pool}, key=TYPES.index)
            wanted = min(open_types, key=lambda t: (self._types[t], rng.random()))
            question = self._best([q for q in pool if q.type == wanted], named, rng)
            asked.append(question)
            named.update(question.about)
            self._types[question.type] += 1
            self._kinds[question.kind] += 1
            self._answers[question.kind, question.answer] += 1
            pool = [q for q in pool if q.type != wanted]
        rng.shuffle(asked)
        return asked

    def _best(self, pool: list[Question], named: Counter[int], rng: random.Random) -> Question:
        kinds = sorted({question.kind for question in pool})
        kind = min(kinds, key=lambda k: (self._kinds[k] / KINDS[k], rng.random()))
        return min(
            (question for question in pool if question.kind == kind),
            key=lambda q: (
                sum(named[i] for i in q.about),
                self._answers[q.kind, q.answer],
                rng.random(),
            ),
        )


def candidates(scene: Scene, rng: random.Random) -> Iterator[Question]:
    """Every question that `scene` answers without doubt; the wording is drawn from `rng`."""

    def make(kind: str, slot: str, answer: str, *about: int) -> Question:
        patterns = PATTERNS.get(kind) or PATTERNS["presence"]
        text = rng.choice(patterns).format(slot)
        return Question(kind=kind, text=text, answer=answer, about=about)

    things = scene.things
    shapes = Counter(thing.shape for thing in things)
    colours = Counter(thing.colour for thing in things)
    for i, thing in enumerate(things):
        if shapes[thing.shape] == 1:
            yield make("colour/shape", thing.shape, thing.colour, i)
            yield make("position/shape", thing.shape, thing.place, i)
        if colours[thing.colour] == 1:
            yield make("shape/colour", thing.colour, thing.shape, i)
            yield make("position/colour", thing.colour, thing.place, i)
        yield make("colour/place", thing.place, thing.colour, i)
        yield make("shape/place", thing.place, thing.shape, i)
        yield make("position/name", thing.name, thing.place, i)
        for j, other in enumerate(things):
            side = direction(thing, other)
            if side:
                yield make("relation/next", f"{side} the {thing.name}", other.name, i, j)
    yield make("count/all", "", NUMBERS[len(things)])
    for shape in SHAPES:
        yield make("count/shape", PLURAL[shape], NUMBERS[shapes[shape]])
    for colour in COLOURS:
        yield make("count/colour", colour, NUMBERS[colours[colour]])
    yield from _presence(things, rng, make)


def direction(thing: Thing, other: Thing) -> str:
    """Where `other` stands from `thing`: "left of" ...; "" unless they share a row or column."""
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
    """One question of each presence kind. Half of the yes and of the no name one word ("bar",
    "red object") instead of two, so that neither wording betrays its answer."""
    shapes = {thing.shape for thing in things}
    colours = {thing.colour for thing in things}
    names = {thing.name for thing in things}
    i = rng.randrange(len(things))
    there = (things[i].name, things[i].shape, f"{things[i].colour} object")
    yield make("presence/yes", rng.choices(there, (2, 1, 1))[0], "yes", i)
    # "presence/near" below always names two words: here it is always one.
    absent = (
        [shape for shape in SHAPES if shape not in shapes],
        [f"{colour} object" for colour in COLOURS if colour not in colours],
    )
    yield make("presence/no", rng.choice(rng.choice(absent)), "no")
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    both = [p for p in pairs if p[0] in colours and p[1] in shapes]
    either = [p for p in pairs if p[0] in colours or p[1] in shapes]
    near = [f"{c} {s}" for c, s in both if f"{c} {s}" not in names]
    near = near or [f"{c} {s}" for c, s in either if f"{c} {s}" not in names]
    yield make("presence/near", rng.choice(near), "no")
