"""Captions of scenes, and the instructions that ask for them."""

from __future__ import annotations

import random

from lmmkit.scenes.scene import Scene

INSTRUCTIONS = (
    "Describe the image briefly.",
    "What is in the picture?",
    "Give a short caption.",
    "Write what you see.",
)


def caption(scene: Scene, rng: random.Random) -> str:
    """Returns one sentence of 8 to 18 words, lower case, without a full stop.

    Half of the captions name places first, in reading order ("top left red bar"). The other half name
    things first, in alphabetical order ("blue bar bottom right"). The first kind trains the model to look
    at a named place, the second to find a named thing. Words or commas distinguish the two kinds, so
    shuffled words and the image determine one sentence. A caption may leave things out. If it always
    named all, the next name would follow from the order, and the model need not look at its place.
    """
    sky, ground = f"under a {scene.scenery.sky} sky", f"over {scene.scenery.ground}"
    number = rng.randint(1, len(scene.things))
    things = [scene.things[i] for i in sorted(rng.sample(range(len(scene.things)), number))]
    if number == 1:
        thing, place = f"a {things[0].size} {things[0].name}", things[0].place
        return rng.choice((f"in the {place} {thing} {sky}", f"{thing} at the {place} {sky}"))
    if rng.random() < 0.5:
        named = _joined([f"{thing.place} {thing.name}" for thing in things])
        return named if number == 3 else f"{sky} {named}"
    named = _joined([f"{t.name} {t.place}" for t in sorted(things, key=lambda t: t.name)])
    return named if number == 3 else f"{named} {ground}"


def empty_caption(scene: Scene, rng: random.Random) -> str:
    """Returns a sentence about a landscape without things, lower case, without a full stop."""
    sky, ground = f"under a {scene.scenery.sky} sky", f"over {scene.scenery.ground}"
    return rng.choice((f"no objects {sky}, only a road {ground}", f"an empty road {ground} {sky}"))


def _joined(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
