"""The vision-reliance probe: the same questions on a blank image and on another scene's image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lmmkit.api.sample import Sample
from lmmkit.data.images import Blank


def blank(samples: Sequence[Sample], *, edit: Blank) -> list[Sample]:
    """Every image replaced by one of a single colour."""
    return [replace(s, images=tuple(replace(image, edit=edit) for image in s.images)) for s in samples]


def swapped(samples: Sequence[Sample]) -> list[Sample]:
    """Every sample with the images of the next sample that has as many, but others, in a circle.

    Questions on one picture stand together, so the whole group moves on to the next picture. A
    sample of text stays as it is.
    """
    after = {}
    for count in {len(s.images) for s in samples}:
        pictures = list(dict.fromkeys(s.images for s in samples if len(s.images) == count))
        after |= dict(zip(pictures, pictures[1:] + pictures[:1], strict=True))
    return [replace(s, images=after[s.images]) for s in samples]
