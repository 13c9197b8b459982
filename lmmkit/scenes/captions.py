"""Captions and the instructions that ask for them: every thing, its place, in reading order."""

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
    """One sentence of 8 to 18 words, lower case, without a full stop.

    Half the captions go by place, in reading order ("top left red bar"), half by name, in the
    alphabet's order ("blue bar bottom right"): the one teaches to look where a word points, the
    other to find what a word names. Words or commas tell the two apart, so that shuffled words and
    the picture leave one sentence to be restored. They may leave things out: a caption that always
    told all would let the next name follow from the order alone, and nothing would have to be
    looked up by its place.
    """
    sky, ground = f"under a {scene.scenery.sky} sky", f"over {scene.scenery.ground}"
    number = rng.randint(1, len(scene.things))
    things = [scene.things[i] for i in sorted(rng.sample(range(len(scene.things)), number))]
    if number == 1:
        whole, place = f"a {things[0].size} {things[0].name}", things[0].place
        return rng.choice((f"in the {place} {whole} {sky}", f"{whole} at the {place} {sky}"))
    if rng.random() < 0.5:
        told = _joined([f"{thing.place} {thing.name}" for thing in things])
        return told if number == 3 else f"{sky} {told}"
    told = _joined([f"{t.name} {t.place}" for t in sorted(things, key=lambda t: t.name)])
    return told if number == 3 else f"{told} {ground}"


def _joined(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
