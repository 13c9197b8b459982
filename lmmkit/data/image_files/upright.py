"""Turns an image as a viewer shows it: upright by its EXIF tag, RGB, transparent pixels over white.

Pillow's plain conversion to RGB would be wrong for 16-bit grey and transparency.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image as Pil
from PIL.PngImagePlugin import PngImageFile

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
_MAY_TURN = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks of a PNG
_MAX_CHUNKS = 100_000  # of a PNG that are looked at: 800 MB as encoders write them


def upright(image: Pil.Image) -> Pil.Image:
    """Returns the image rotated and mirrored as its EXIF tag asks for; unchanged without a tag."""
    method = turn(image)
    return image if method is None else image.transpose(method)


def upright_size(image: Pil.Image) -> HeightWidth:
    """Returns (height, width) of the upright image."""
    width, height = image.size
    return (width, height) if turn(image) in SIDEWAYS else (height, width)


def turn(image: Pil.Image) -> Pil.Transpose | None:
    """Returns what turns an image upright, if anything does."""
    try:
        # Pillow decodes the pixels of a PNG without EXIF, because it may follow them
        exif = Pil.Image.getexif(image) if _ends_with_pixels(image) else image.getexif()
        return UPRIGHT.get(exif.get(ORIENTATION, 1))
    except Exception:  # broken EXIF is common, and no reason to refuse the image
        return None


def _ends_with_pixels(image: Pil.Image) -> bool:
    """Returns whether an image is a PNG that is not decoded and has nothing behind its pixels that may turn it."""
    if not isinstance(image, PngImageFile) or image.fp is None:
        return False
    at = image.fp.tell()
    try:
        return all(kind not in _MAY_TURN for kind in _from_pixels(image.fp))
    finally:
        image.fp.seek(at)


def _from_pixels(file: IO[bytes]) -> Iterator[bytes]:
    """Yields the kinds of the chunks of a PNG from its pixels on; at the end one that may turn it if there are many."""
    file.seek(8)
    begun = False
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        begun = begun or kind == b"IDAT"
        if begun:
            yield kind
        file.seek(length + 4, 1)  # a checksum follows the data
    yield _MAY_TURN[0]


def as_rgb(image: Pil.Image) -> Pil.Image:
    """Returns the image in RGB with 8 bits a channel, transparent pixels blended over white."""
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
