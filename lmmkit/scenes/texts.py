"""Conversations without images, for a decoder that is to bring a language prior, and to be able to read."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from lmmkit.scenes.captions import INSTRUCTIONS, caption
from lmmkit.scenes.priors import KINDS, Key, PriorAsker, text_of
from lmmkit.scenes.records import turns
from lmmkit.scenes.scene import Scene, make_scene

QUESTIONS = 4  # of a conversation
SPLIT = "train"  # of the scenes that are described: no text describes a held-out scene


def description(scene: Scene, rng: random.Random) -> str:
    """Returns a sentence that names all things with their places, in random order, and the landscape."""
    things = [f"a {thing.size} {thing.name} in the {thing.place}" for thing in scene.things]
    rng.shuffle(things)
    landscape = f"{scene.scenery.ground} under a {scene.scenery.sky} sky"
    return f"There is {', '.join((*things, landscape))}."


def text_records(
    usual: Mapping[Key, str], *, bias: float, kinds: Sequence[str], number: int, first: int, seed: int
) -> list[dict[str, Any]]:
    """Returns conversations without images; those with equal arguments are equal.

    In every second one the questions have no context: a share `bias` of the answers is the usual one, the others are
    drawn evenly. The other conversations begin with the description of a scene. Half of them ask for a caption of
    it, half ask questions whose answers are balanced, so only who reads the description can answer.

    Args:
        usual: the usual answer of each key.
        bias: the share of usual answers where nothing is described.
        kinds: the kinds of questions about a description.
        number: of conversations.
        first: the number of the first scene that is described, after those of the images.
        seed: of the scenes.
    """
    asker = PriorAsker(usual, None)
    records = []
    for n in range(number):
        rng = random.Random(f"lmmkit texts/{seed}/{n}")
        if n % 2 == 0:
            pairs = _from_memory(usual, bias, rng)
        else:
            pairs = _from_description(make_scene(seed, SPLIT, first + n), asker, kinds, n % 4 == 1, rng)
        records.append({"id": f"text/{n:06d}", "conversations": turns(pairs)})
    return records


def _from_memory(usual: Mapping[Key, str], bias: float, rng: random.Random) -> list[tuple[str, str]]:
    pairs = []
    for kind, slot in rng.sample(sorted(usual), min(QUESTIONS, len(usual))):
        answer = usual[kind, slot]
        if rng.random() >= bias:
            answer = rng.choice([other for other in KINDS[kind].answers if other != answer])
        pairs.append((text_of(kind, slot, rng), answer))
    return pairs


def _from_description(
    scene: Scene, asker: PriorAsker, kinds: Sequence[str], captioned: bool, rng: random.Random
) -> list[tuple[str, str]]:
    text = description(scene, rng)
    asked = [] if captioned else asker.ask(scene, kinds, QUESTIONS, rng)
    pairs = [(question.text, question.answer) for question in asked]
    (question, answer), *others = pairs or [(rng.choice(INSTRUCTIONS), caption(scene, rng))]
    return [(f"{text}\n{question}", answer), *others]
