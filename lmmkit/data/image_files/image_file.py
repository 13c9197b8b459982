"""Opens image files: each error is a `UserError` with the file.

Only five formats are accepted, with at most 40 million pixels, an aspect ratio of at most 200, and no
truncated files.
"""

from __future__ import annotations

import functools
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from typing import BinaryIO

from PIL import Image as Pil

from lmmkit.api.sample import Image, ImageFit
from lmmkit.data.image_files.data_addresses import address_bytes, address_in
from lmmkit.data.image_files.upright import HeightWidth, as_rgb, upright, upright_size
from lmmkit.data.tables.table_file import IMAGES, open_table, read_cell
from lmmkit.errors import LmmkitError, UserError
from lmmkit.errors.data import IMAGE_DAMAGED, IMAGE_FILE, IMAGE_FORMAT, IMAGE_SHAPE, IMAGE_TOO_LARGE
from lmmkit.memory_faults import is_out_of_memory

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 40_000_000  # decoded; Pillow itself only warns below 90 million
MAX_SQUARE = 4 * MAX_PIXELS  # padded
MAX_ASPECT = 200
MAX_BYTES = 4 * MAX_PIXELS  # of the file; an uncompressed bitmap takes as many

File = str | os.PathLike[str] | Image  # the path of a file, or an `Image`, which may be a part of one


@contextmanager
def opened_image(file: File, fit: ImageFit) -> Iterator[Pil.Image]:
    """Opens the image and checks its header. Every error in the block but too little memory becomes a `UserError`."""
    image = as_image(file)
    name = image_place(image)
    with _as_user_error(name), _bytes(image, name) as data, Pil.open(data, formats=FORMATS) as opened:
        _check_size(name, *opened.size, fit)
        yield opened


def as_image(file: File) -> Image:
    """Returns the path of a file as an `Image`."""
    return file if isinstance(file, Image) else Image(os.fspath(file))


def image_place(image: Image) -> str:
    """Returns the place of an image as messages name it."""
    if image.cell is not None:
        record, column, number = image.cell
        which = f"image {number}" if image.address is None else f"`data:` address {image.address}"
        return f"{image.path}:{record + 1} (`{column}`, {which})"
    part = image.part
    if part is None:
        return image.path
    which = "" if image.address is None else f", `data:` address {image.address}"
    return f"{image.path} (bytes {part[0]} to {sum(part)}{which})"


@contextmanager
def _as_user_error(path: str) -> Iterator[None]:
    """Turns every error inside into a `UserError` about the file `path`. Too little memory is no fault of the file."""
    try:
        yield
    except LmmkitError:
        raise
    except Pil.UnidentifiedImageError as error:
        problem = IMAGE_FORMAT.at(path, got="a file in no known format", formats=", ".join(FORMATS))
        raise UserError(problem) from error
    except (Pil.DecompressionBombError, Pil.DecompressionBombWarning) as error:
        raise UserError(IMAGE_TOO_LARGE.at(path, got=str(error), most=f"{MAX_PIXELS} pixels")) from error
    except Exception as error:  # for broken files Pillow's decoders raise errors of many types
        if is_out_of_memory(error):
            raise
        missing = error.strerror if isinstance(error, OSError) else None
        code, reason = (IMAGE_FILE, missing) if missing else (IMAGE_DAMAGED, str(error))
        raise UserError(code.at(path, got=reason or type(error).__name__)) from error


def _bytes(image: Image, path: str) -> BinaryIO:
    """Opens the file of an image, or the part of a file that contains it."""
    if image.cell is not None and image.address is not None:
        record, column, _ = image.cell
        return _written(open_table(image.path).read(record, [column], IMAGES)[column], image.address, path)
    if image.cell is not None:
        data = read_cell(image.path, *image.cell)
        if len(data) > MAX_BYTES:
            raise UserError(IMAGE_TOO_LARGE.at(path, got=f"{len(data)} bytes", most=f"{MAX_BYTES} bytes"))
        return BytesIO(data)
    # A pipe or a device could block or never end. O_NONBLOCK avoids the wait; the check below refuses both.
    file = open(os.open(image.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115
    try:
        found = os.fstat(file.fileno())
        offset, size = image.part or (0, found.st_size)
        if not stat.S_ISREG(found.st_mode):
            raise UserError(IMAGE_FILE.at(path, got="no regular file"))
        if size > MAX_BYTES:
            raise UserError(IMAGE_TOO_LARGE.at(path, got=f"{size} bytes", most=f"{MAX_BYTES} bytes"))
        if image.part is None:
            return file
        data = os.pread(file.fileno(), size, offset)
        if len(data) < size:
            raise UserError(IMAGE_DAMAGED.at(path, got=f"{len(data)} of {size} bytes"))
    except BaseException:
        file.close()
        raise
    file.close()
    return BytesIO(data) if image.address is None else _written(json.loads(data), image.address, path)


def _written(value: object, address: str, path: str) -> BinaryIO:
    """Returns the image that a value contains as a `data:` address with this hash."""
    if (found := address_in(value, address)) is None:
        raise UserError(IMAGE_DAMAGED.at(path, got="no `data:` address that is the image"))
    return BytesIO(address_bytes(found, MAX_BYTES))


def _check_size(path: str, width: int, height: int, fit: ImageFit) -> None:
    got = f"{width} x {height} pixels"
    long, short = max(width, height), min(width, height)
    if short < 1 or long > MAX_ASPECT * short:
        raise UserError(IMAGE_SHAPE.at(path, got=got, ratio=MAX_ASPECT))
    if width * height > MAX_PIXELS:
        raise UserError(IMAGE_TOO_LARGE.at(path, got=got, most=f"{MAX_PIXELS} pixels"))
    if fit == "pad" and long * long > MAX_SQUARE:
        raise UserError(
            IMAGE_TOO_LARGE.at(path, got=got, most=f"{MAX_SQUARE} pixels when padded to a square")
        )


def image_size(image: Image) -> HeightWidth:
    """Returns (height, width) of an image, upright, from the header of its file."""
    try:
        found = os.stat(image.path)
    except (OSError, ValueError):
        return _size.__wrapped__(unedited(image), 0, 0)  # says why the file cannot be read
    return _size(unedited(image), found.st_mtime_ns, found.st_size)


@functools.lru_cache(4096)
def _size(image: Image, changed: int, size: int) -> HeightWidth:
    return check_header(image, "crop")


def check_header(path: File, fit: ImageFit) -> HeightWidth:
    """Returns (height, width) of an image, upright. Raises `UserError` if its header breaks a rule of `read_image`."""
    with opened_image(path, fit) as opened:
        return upright_size(opened)


def check_whole(path: File, fit: ImageFit) -> HeightWidth:
    """Returns (height, width) of an image, upright. Raises `UserError` if its header breaks a rule of `read_image` or a
    pixel cannot be decoded."""
    with opened_image(path, fit) as opened:
        opened.load()
        return upright_size(opened)


def small_image(path: File, most: int) -> Pil.Image:
    """Returns an image as a viewer shows it, upright and RGB, with sides of at most `most`. Raises as `read_image`."""
    with opened_image(path, "crop") as opened:
        opened.draft(None, (2 * most, 2 * most))  # a JPEG is decoded at an eighth of its size or more
        opened.load()
        image = as_rgb(upright(opened))
        image.thumbnail((most, most))
        return image


def read_bytes(image: Image) -> tuple[bytes, str]:
    """Returns the file of an image, and its format, one of `FORMATS`. Raises `UserError` as `check_header` does."""
    name = image_place(image)
    with _as_user_error(name), _bytes(image, name) as data, Pil.open(data, formats=FORMATS) as opened:
        _check_size(name, *opened.size, "crop")
        data.seek(0)
        format = str(opened.format)
        return (
            data.read(),
            "JPEG" if format == "MPO" else format,
        )  # a JPEG of a camera, with further ones behind it


def save_pixels(image: Pil.Image, path: str | os.PathLike[str]) -> None:
    """Writes an image in memory to a file that `read_image` reads as it would read the image's own file.

    Raises `UserError` if its pixels cannot be read.
    """
    with _as_user_error("an image in memory"):
        as_rgb(upright(image)).save(path, format="BMP")


def unedited(image: Image) -> Image:
    """Returns the image as its file contains it."""
    return image if image.edit is None else replace(image, edit=None)
