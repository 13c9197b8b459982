"""Symbolic scenes: things and their places, before drawing and questions.

A scene is a function of (seed, split, index) only, so a small data set is the beginning of a large
one. A hash of its description decides the split of a scene, so for all counts no held-out scene
equals a training scene.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

# These shapes differ in the area that they fill, not only in their corners. At 48 pixels corners are
# lost: a small model cannot distinguish a circle from a square, or a star from a triangle.
SHAPES = ("square", "triangle", "cross", "bar")
COLOURS = ("red", "green", "blue", "yellow", "purple")
SIZES = ("small", "large")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
NEIGHBOURS = (CORNERS[:2], CORNERS[2:], CORNERS[::2], CORNERS[1::2])
CENTRE = "centre"
SKIES = ("pale", "golden", "dusky")
GROUNDS = ("sand", "grass", "stone")
SPLITS = ("train", "heldout")

# Width and height in pixels. Sides differ by an eighth at most: padded to a square and
# shrunk to 48 pixels, a small object still covers a patch.
CANVASES = ((64, 64), (72, 64), (64, 72), (80, 80), (90, 80), (80, 90), (96, 96), (112, 100))
THINGS = (1, 2, 3)
THING_WEIGHTS = (0.38, 0.4, 0.22)
HELDOUT_EVERY = 5  # one of this many descriptions belongs to the held-out split


@dataclass(frozen=True, kw_only=True)
class Thing:
    """Describes one object. `dx`, `dy` shift it from its place, in shares of the image's short side."""

    shape: str
    colour: str
    size: str
    place: str
    dx: float
    dy: float

    @property
    def name(self) -> str:
        """Returns colour and shape, as in "red bar". It is unique within a scene, like the colour."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Scenery:
    """Describes the background. Lengths are shares of the image's height or width.

    `horizon` is its height in the middle, `slope` its fall from the left to the right edge. `light` is
    the side that the light comes from (0 left, 1 right). `tint` shifts the colours slightly.
    """

    sky: str
    ground: str
    horizon: float
    slope: float
    light: float
    tint: tuple[float, float, float]
    hill: tuple[float, float, float]  # middle, half width, height
    road: tuple[float, float, float]  # foot, head, half width at the foot


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Describes an image. `things` are in reading order."""

    split: str
    index: int
    width: int
    height: int
    suffix: str  # "jpg" or "png"
    things: tuple[Thing, ...]
    scenery: Scenery

    @property
    def id(self) -> str:
        """Returns the id, as in "train/000123". It is also the path below `images/`, without the suffix."""
        return f"{self.split}/{self.index:06d}"

    @property
    def image(self) -> str:
        """Returns the path of the image in the data set's folder."""
        return f"images/{self.id}.{self.suffix}"

    @property
    def description(self) -> tuple[tuple[str, str, str, str], ...]:
        """Returns the sorted (shape, colour, size, place) of its things. Equal ones mean equal scenes."""
        return tuple(sorted((t.shape, t.colour, t.size, t.place) for t in self.things))


def make_scene(seed: int, split: str, index: int) -> Scene:
    """Returns scene number `index` of `split`. Equal arguments give an equal scene."""
    rng = random.Random(f"lmmkit scenes/{seed}/{split}/{index}")
    number = rng.choices(THINGS, THING_WEIGHTS)[0]
    width, height = rng.choice(CANVASES)
    suffix = "jpg" if rng.random() < 0.6 else "png"
    scenery = _scenery(rng)
    while True:
        scene = Scene(
            split=split,
            index=index,
            width=width,
            height=height,
            suffix=suffix,
            things=_things(rng, number),
            scenery=scenery,
        )
        if split_of(seed, scene.description) == split:
            return scene


def split_of(seed: int, description: tuple[tuple[str, str, str, str], ...]) -> str:
    """Returns the only split in which a scene with this description may appear."""
    digest = hashlib.blake2b(repr((seed, description)).encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") % HELDOUT_EVERY == 0 else "train"


def _things(rng: random.Random, number: int) -> tuple[Thing, ...]:
    """Returns `number` things with different places and different colours. Shapes may repeat."""
    colours = rng.sample(COLOURS, number)
    shapes = [rng.choice(SHAPES)]
    while len(shapes) < number:  # repeats, so that counts above one are common
        shapes.append(rng.choice(shapes) if rng.random() < 0.35 else rng.choice(SHAPES))
    kinds = zip(shapes, colours, strict=True)
    places = sorted(rng.sample(CORNERS, number), key=CORNERS.index)
    if number == 1 and rng.random() < 0.4:
        places = [CENTRE]
    elif number == 2 and rng.random() < 0.5:
        # Fewer diagonals than by chance: relation questions need neighbours.
        places = list(rng.choice(NEIGHBOURS))
    return tuple(
        Thing(
            shape=shape,
            colour=colour,
            size=rng.choice(SIZES),
            place=place,
            dx=rng.uniform(-0.012, 0.012),
            dy=rng.uniform(-0.012, 0.012),
        )
        for (shape, colour), place in zip(kinds, places, strict=True)
    )


def _scenery(rng: random.Random) -> Scenery:
    foot = rng.uniform(0.2, 0.8)
    return Scenery(
        sky=rng.choice(SKIES),
        ground=rng.choice(GROUNDS),
        horizon=rng.uniform(0.42, 0.58),
        slope=rng.uniform(-0.12, 0.12),
        light=rng.choice((rng.uniform(0.05, 0.3), rng.uniform(0.7, 0.95))),
        tint=(rng.uniform(-9, 9), rng.uniform(-9, 9), rng.uniform(-9, 9)),
        hill=(rng.uniform(0.1, 0.9), rng.uniform(0.3, 0.5), rng.uniform(0.1, 0.2)),
        road=(foot, 0.5 + 0.5 * (0.5 - foot) + rng.uniform(-0.1, 0.1), rng.uniform(0.1, 0.16)),
    )
