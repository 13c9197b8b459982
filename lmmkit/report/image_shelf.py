"""The images of a page: each once, small, as a data URI."""

from __future__ import annotations

import base64
import io

from PIL import Image

from lmmkit.data.image_files.image_file import small_image
from lmmkit.errors import UserError

SIDE, QUALITY = 256, 82


class ImageShelf:
    """Holds the images of a page by the path of their file. `missing`: files that are no readable image."""

    def __init__(self) -> None:
        self.missing: set[str] = set()
        self._uris: dict[str, str | None] = {}
        self._placed: dict[str, int] = {}

    def uri(self, path: str) -> str | None:
        """Returns the image as a WebP with sides of at most `SIDE`; None for a file that cannot be read."""
        if path not in self._uris:
            self._uris[path] = small_webp(path)
            if self._uris[path] is None:
                self.missing.add(path)
        return self._uris[path]

    def place(self, path: str | None) -> int | None:
        """Puts an image on the page, and returns its number; None without a readable image."""
        if path is None or self.uri(path) is None:
            return None
        return self._placed.setdefault(path, len(self._placed))

    def cost(self, path: str | None) -> int:
        """Returns the bytes that `place` would add to the page."""
        if path is None or path in self._placed:
            return 0
        return len(self.uri(path) or "") + 3

    def uris(self) -> list[str]:
        """Returns the images on the page, by number."""
        return [self._uris[path] or "" for path in self._placed]


def small_webp(path: str) -> str | None:
    """Returns an image file as a data URI, upright and in RGB as a model reads it; None if no model could read it."""
    try:
        return webp_uri(small_image(path, SIDE))
    except UserError:
        return None


def webp_uri(image: Image.Image, *, lossless: bool = False) -> str:
    """Returns an RGB image, made smaller than `SIDE`, as a data URI."""
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "WEBP", quality=QUALITY, method=3, lossless=lossless)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
