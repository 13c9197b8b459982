"""Controls for reliance on the image: the questions with a blank image, and with another scene's image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lmmkit.api.sample import Sample
from lmmkit.data.images import Blank


def blank(samples: Sequence[Sample], *, edit: Blank) -> list[Sample]:
    """Returns the samples with every image replaced by one of a single colour."""
    return [replace(s, images=tuple(replace(image, edit=edit) for image in s.images)) for s in samples]


def swapped(samples: Sequence[Sample]) -> list[Sample]:
    """Returns each sample with the images of another sample that has equally many images.

    The sets of images are shifted by one, in order of first use, the last to the first. So all questions on
    one image get the same other image. Samples without images are unchanged.
    """
    after = {}
    for count in {len(s.images) for s in samples}:
        pictures = list(dict.fromkeys(s.images for s in samples if len(s.images) == count))
        after |= dict(zip(pictures, pictures[1:] + pictures[:1], strict=True))
    return [replace(s, images=after[s.images]) for s in samples]
