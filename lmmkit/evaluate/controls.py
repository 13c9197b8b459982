"""Controls for reliance on the image: the questions with a blank image, and with another scene's image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import Sample
from lmmkit.data.images import Blank


def with_controls(
    samples: Sequence[Sample], controls: Iterable[str], spec: ImageSpec
) -> dict[str, Sequence[Sample]]:
    """Returns the samples under "", and those of each control under "_CONTROL". `spec`: of the encoder."""
    made = {
        "blank": lambda: blank(samples, edit=Blank("mean", spec.mean, spec.std)),
        "swapped": lambda: swapped(samples),
    }
    return {"": samples, **{f"_{control}": made[control]() for control in controls}}


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
        sets = list(dict.fromkeys(s.images for s in samples if len(s.images) == count))
        after |= dict(zip(sets, sets[1:] + sets[:1], strict=True))
    return [replace(s, images=after[s.images]) for s in samples]
