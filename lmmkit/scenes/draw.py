"""Draws a scene: a continuous landscape over the full image, and the things on it.

The landscape is needed for tasks that put image tiles in order. Sky, hill, sloping horizon and road
cross the tile borders, light comes from one side and the corners are dark, so each tile shows its
position. All colours of the landscape are pale and greyish, so that the things are clearly visible.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from lmmkit.scenes.scene import CENTRE, Scene, Scenery, Thing

Outline = list[tuple[float, float]]

FINE = 3  # outlines are drawn larger by this factor, then averaged, for smooth edges
REACH = 0.25  # from the middle to a corner thing, in short sides
RADIUS = {"small": 0.16, "large": 0.22}  # in short sides
# Shapes of equal radius look different in size. These factors make them look equal.
SWELL = {"square": 0.9, "triangle": 1.12, "cross": 1.04, "bar": 1.16}

RGB = {
    "red": (215, 25, 30),
    "green": (0, 150, 40),
    "blue": (25, 60, 230),
    "yellow": (255, 225, 0),
    "purple": (165, 25, 185),
}
INK = (20, 20, 24)  # the rim of all things: shapes look the same in all colours
LINE = 0.025  # the rim's width, in short sides

# Each pair: colour at the top and colour at the bottom of the area.
SKY = {
    "pale": ((165, 186, 203), (222, 229, 230)),
    "golden": ((192, 172, 142), (238, 224, 198)),
    "dusky": ((142, 134, 158), (204, 188, 196)),
}
GROUND = {
    "sand": ((203, 186, 152), (164, 142, 110)),
    "grass": ((172, 184, 146), (126, 142, 104)),
    "stone": ((176, 177, 180), (128, 130, 136)),
}


def draw(scene: Scene) -> Image.Image:
    """Returns the image of `scene`, RGB, `scene.width` x `scene.height` pixels."""
    size = (scene.width, scene.height)
    image = _landscape(scene.scenery, *size)
    for thing in scene.things:
        outline = _outline(thing, *size)
        image.paste(RGB[thing.colour], mask=_mask(size, outline))
        image.paste(INK, mask=_mask(size, outline, line=LINE * min(size)))
    return image


def middle(thing: Thing, width: int, height: int) -> tuple[float, float]:
    """Returns the centre of `thing`, in pixels from the top left corner."""
    short = min(width, height)
    x, y = width / 2 + thing.dx * short, height / 2 + thing.dy * short
    if thing.place != CENTRE:
        # Distances differ less than the sides of the image: a square cut from its middle keeps the things.
        reach_x = REACH * (3 * short + width) / 4
        reach_y = REACH * (3 * short + height) / 4
        x += reach_x if thing.place.endswith("right") else -reach_x
        y += reach_y if thing.place.startswith("bottom") else -reach_y
    return x, y


def radius(thing: Thing, width: int, height: int) -> float:
    """Returns half the extent of `thing` in pixels."""
    return RADIUS[thing.size] * SWELL[thing.shape] * min(width, height)


def extent(thing: Thing, width: int, height: int) -> tuple[float, float, float, float]:
    """Returns left, top, right and bottom of `thing` with its rim, in pixels from the top left corner."""
    xs, ys = zip(*_outline(thing, width, height), strict=True)
    rim = LINE * min(width, height) / 2
    return min(xs) - rim, min(ys) - rim, max(xs) + rim, max(ys) + rim


def _mask(size: tuple[int, int], outline: Outline, line: float = 0.0) -> Image.Image:
    """Returns a mask: 255 inside the outline (in pixels), 0 outside, smooth between. With `line`, 255 on
    the rim, which is `line` pixels wide."""
    mask = Image.new("L", (size[0] * FINE, size[1] * FINE))
    pen = ImageDraw.Draw(mask)
    points = [(x * FINE, y * FINE) for x, y in outline]
    if line:
        # The first two points are repeated at the end, so that the first corner is joined like the others.
        pen.line([*points, *points[:2]], fill=255, width=round(line * FINE), joint="curve")
    else:
        pen.polygon(points, fill=255)
    return mask.reduce(FINE)


def _outline(thing: Thing, width: int, height: int) -> Outline:
    """Returns the outline of `thing`, in pixels."""
    x, y = middle(thing, width, height)
    r = radius(thing, width, height)
    return [(x + r * across, y + r * down) for across, down in FORM[thing.shape]]


ARM = 0.36  # half the width of an arm of a cross, relative to its length
FLAT = 0.48  # half the height of a bar, relative to half its length
FORM: dict[str, Outline] = {
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
    "cross": [
        *((-ARM, -1), (ARM, -1), (ARM, -ARM), (1, -ARM), (1, ARM), (ARM, ARM)),
        *((ARM, 1), (-ARM, 1), (-ARM, ARM), (-1, ARM), (-1, -ARM), (-ARM, -ARM)),
    ],
    "bar": [(-1, -FLAT), (1, -FLAT), (1, FLAT), (-1, FLAT)],
}


def _landscape(scenery: Scenery, width: int, height: int) -> Image.Image:
    size = (width, height)
    x_W = (np.arange(width, dtype=np.float32) + 0.5) / width
    y_H = (np.arange(height, dtype=np.float32) + 0.5) / height
    tint = np.asarray(scenery.tint, np.float32)

    def blend(pair: tuple[tuple[int, int, int], ...], low: float, high: float) -> np.ndarray:
        share_H = np.clip((y_H - low) / (high - low), 0, 1)[:, None, None]
        top, bottom = np.asarray(pair, np.float32) + tint
        return top + (bottom - top) * share_H

    sky_HWC = np.broadcast_to(blend(SKY[scenery.sky], 0, scenery.horizon), (height, width, 3))
    ground_HWC = blend(GROUND[scenery.ground], scenery.horizon, 1)
    hill_HWC = 0.5 * (sky_HWC + ground_HWC) - 22
    road_HWC = ground_HWC - 30
    image_HWC = sky_HWC
    for layer_HWC, outline in (
        (hill_HWC, _hill(scenery)),
        (ground_HWC, _ground(scenery)),
        (road_HWC, _road(scenery)),
    ):
        mask = _mask(size, [(x * width, y * height) for x, y in outline])
        mask_HW1 = np.asarray(mask, np.float32)[:, :, None] / 255
        image_HWC = image_HWC + (layer_HWC - image_HWC) * mask_HW1

    # Light from above on one side; dark corners, as in a photograph.
    far_HW = (x_W[None, :] - scenery.light) ** 2 + (y_H[:, None] * 0.9) ** 2
    lens_HW = (x_W[None, :] - 0.5) ** 2 + (y_H[:, None] - 0.5) ** 2
    light_HW = 0.9 + 0.28 * np.exp(-far_HW / 0.18) - 0.45 * lens_HW
    return Image.fromarray((image_HWC * light_HW[:, :, None]).clip(0, 255).astype(np.uint8))


def _horizon(scenery: Scenery, x: float) -> float:
    return scenery.horizon + scenery.slope * (x - 0.5)


def _ground(scenery: Scenery) -> Outline:
    return [(0, _horizon(scenery, 0)), (1, _horizon(scenery, 1)), (1, 1), (0, 1)]


def _hill(scenery: Scenery) -> Outline:
    centre, half, tall = scenery.hill
    top = []
    for k in range(17):
        x = centre + half * (k / 8 - 1)
        top.append((x, _horizon(scenery, x) - tall * math.cos((k / 8 - 1) * math.pi / 2)))
    return [*top, (centre + half, 1), (centre - half, 1)]


def _road(scenery: Scenery) -> Outline:
    foot, head, half = scenery.road
    top = _horizon(scenery, head)
    return [(head - 0.015, top), (head + 0.015, top), (foot + half, 1), (foot - half, 1)]
