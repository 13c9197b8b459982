"""Controls for reliance on the image: the questions with a blank image, with another item's, and with none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import Sample
from lmmkit.data.images import Blank

PROBE = ("blank", "swapped", "none")  # the controls of `--probe`


def with_controls(
    samples: Sequence[Sample], controls: Iterable[str], spec: ImageSpec
) -> dict[str, Sequence[Sample]]:
    """Returns the samples under "own", and those of each control by its name. `spec`: of the encoder."""
    made = {
        "blank": lambda: blank(samples, edit=Blank("mean", spec.mean, spec.std)),
        "black": lambda: blank(samples, edit=Blank("black", spec.mean, spec.std)),
        "swapped": lambda: swapped(samples),
        "none": lambda: without_images(samples),
    }
    return {"own": samples, **{control: made[control]() for control in controls}}


def blank(samples: Sequence[Sample], *, edit: Blank) -> list[Sample]:
    """Returns the samples with every image replaced by one of a single colour.

    All of them are edits of one file, so the model reads this image once for all questions.
    """
    first = next((replace(image, edit=edit) for s in samples for image in s.images), None)
    return [replace(s, images=(first,) * len(s.images) if first else ()) for s in samples]


def swapped(samples: Sequence[Sample]) -> list[Sample]:
    """Returns each sample with the images of another sample that has equally many images.

    The sets of images are shifted by one, in order of first use, the last to the first. So all questions on
    one image get the same other image. Samples without images are unchanged, and so are those of the only set
    with its number of images.
    """
    after = {}
    for count in {len(s.images) for s in samples}:
        sets = list(dict.fromkeys(s.images for s in samples if len(s.images) == count))
        after |= dict(zip(sets, sets[1:] + sets[:1], strict=True))
    return [replace(s, images=after[s.images]) for s in samples]


def without_images(samples: Sequence[Sample]) -> list[Sample]:
    """Returns the samples as text alone."""
    return [
        replace(s, images=(), turns=tuple(replace(t, images=0, places=()) for t in s.turns)) for s in samples
    ]
