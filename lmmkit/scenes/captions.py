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
    """One sentence of 8 to 18 words, lower case, without a full stop."""
    sky, ground = f"under a {scene.scenery.sky} sky", f"over {scene.scenery.ground}"
    things = scene.things
    full = [f"a {thing.size} {thing.name}" for thing in things]
    if len(things) == 1:
        place = f"in the {things[0].place}"
        return rng.choice((f"{place} {full[0]} {sky}", f"{full[0]} {place} {sky}"))
    placed = [f"{thing.place} a {thing.name}" for thing in things]
    sized = [f"{thing.place} {whole}" for thing, whole in zip(things, full, strict=True)]
    # The place mostly comes first: a small model learns early to look where a word points, and
    # late to find out what a sentence is going to speak of.
    if len(things) == 2:
        one, two = things
        return rng.choice(
            (
                f"{sky} {placed[0]} and {placed[1]}",
                f"{sized[0]} and {sized[1]} {ground}",
                f"{full[0]} {one.place} and {full[1]} {two.place}",
            )
        )
    if len(things) == 3:
        return rng.choice(
            (
                f"{placed[0]}, {placed[1]} and {placed[2]}",
                f"{sized[0]}, {placed[1]} and {sized[2]}",
            )
        )
    bare = [f"{thing.place} {thing.name}" for thing in things]
    return f"{bare[0]}, {bare[1]}, {bare[2]} and {bare[3]}"
