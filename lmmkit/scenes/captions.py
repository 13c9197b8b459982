"""Captions and the instructions that ask for them: every thing, its place, in reading order."""

from __future__ import annotations

import random

from lmmkit.scenes.scene import Scene, Thing

INSTRUCTIONS = (
    "Describe the image briefly.",
    "What is in the picture?",
    "Give a short caption.",
    "Write what you see.",
)


def caption(scene: Scene, rng: random.Random) -> str:
    """One sentence of 8 to 18 words, lower case, without a full stop."""
    scenery = scene.scenery
    names = [f"a {thing.name}" for thing in scene.things]
    full = [f"a {thing.size} {thing.name}" for thing in scene.things]
    if len(scene.things) == 1:
        place = scene.things[0].place
        return rng.choice(
            (
                f"{full[0]} in the {place} under a {scenery.sky} sky",
                f"under a {scenery.sky} sky there is {full[0]} in the {place}",
                f"{full[0]} in the {place} of a scene with {scenery.ground}",
            )
        )
    placed = [f"{name} {thing.place}" for name, thing in zip(names, scene.things, strict=True)]
    if len(scene.things) == 2:
        one, two = scene.things
        return rng.choice(
            (
                f"{full[0]} in the {one.place} and {full[1]} in the {two.place}",
                f"under a {scenery.sky} sky {placed[0]} and {placed[1]}",
                f"{full[0]} {one.place} and {full[1]} {two.place} over {scenery.ground}",
            )
        )
    if len(scene.things) == 3:
        return rng.choice(
            (
                f"{placed[0]}, {placed[1]} and {placed[2]}",
                f"there is {placed[0]}, then {placed[1]} and {placed[2]}",
                f"{_rows(scene.things, full)} under a {scenery.sky} sky",
            )
        )
    return rng.choice(
        (
            f"{names[0]} beside {names[1]} above {names[2]} beside {names[3]}",
            f"on top {names[0]} and {names[1]}, below {names[2]} and {names[3]}",
            f"{full[0]} and {full[1]} above {names[2]} and {names[3]}",
        )
    )


def _rows(things: tuple[Thing, ...], names: list[str]) -> str:
    """Three things as an upper and a lower row; one of them holds a single thing."""
    if things[1].place.startswith("top"):
        return f"{names[0]} beside {names[1]} above {names[2]}"
    return f"{names[0]} above {names[1]} beside {names[2]}"
