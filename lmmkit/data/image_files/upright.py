"""Turns an image as a viewer shows it: upright by its EXIF tag, RGB, transparent pixels over white.

Pillow's plain conversion to RGB would be wrong for 16-bit grey and transparency.
"""

from __future__ import annotations

import numpy as np
from PIL import Image as Pil

HeightWidth = tuple[int, int]  # (height, width)

ORIENTATION = 0x0112  # EXIF tag: rotation and mirroring
UPRIGHT = {
    2: Pil.Transpose.FLIP_LEFT_RIGHT,
    3: Pil.Transpose.ROTATE_180,
    4: Pil.Transpose.FLIP_TOP_BOTTOM,
    5: Pil.Transpose.TRANSPOSE,
    6: Pil.Transpose.ROTATE_270,
    7: Pil.Transpose.TRANSVERSE,
    8: Pil.Transpose.ROTATE_90,
}
SIDEWAYS = [UPRIGHT[number] for number in (5, 6, 7, 8)]  # these exchange height and width


def upright(image: Pil.Image) -> Pil.Image:
    method = turn(image)
    return image if method is None else image.transpose(method)


def upright_size(image: Pil.Image) -> HeightWidth:
    """Returns (height, width) of the upright image. Reads the pixels of a PNG, behind which its rotation may be."""
    width, height = image.size
    return (width, height) if turn(image) in SIDEWAYS else (height, width)


def turn(image: Pil.Image) -> Pil.Transpose | None:
    """Returns what turns an image upright, if anything does."""
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # broken EXIF is common, and no reason to refuse the image
        return None


def as_rgb(image: Pil.Image) -> Pil.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey; Pillow would clip it at 255
        values = np.asarray(image).astype(np.float32).clip(0, 65535)
        return Pil.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Pil.new("RGBA", image.size, (255, 255, 255, 255))
        return Pil.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
