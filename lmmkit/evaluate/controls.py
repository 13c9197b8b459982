"""Controls for reliance on the image: questions with a blank or an empty one, with another item's, and with none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import Image, Sample
from lmmkit.data.image_files.image_file import check_header
from lmmkit.data.images import Blank
from lmmkit.errors import Problem, UserError
from lmmkit.recipe import Control, EmptyImage, Recipe

PROBE: tuple[Control, ...] = ("blank", "swapped", "none")  # the controls of `--probe`


def with_controls(
    samples: Sequence[Sample], controls: Iterable[Control], spec: ImageSpec
) -> dict[str, Sequence[Sample]]:
    """Returns the samples under "own", and those of each control by its name. `spec`: of the encoder.

    The path of an `EmptyImage` is absolute; its name is "empty".
    """
    made = {
        "blank": lambda: blank(samples, edit=Blank("mean", spec.mean, spec.std)),
        "black": lambda: blank(samples, edit=Blank("black", spec.mean, spec.std)),
        "swapped": lambda: swapped(samples),
        "none": lambda: without_images(samples),
    }
    found: dict[str, Sequence[Sample]] = {"own": samples}
    for control in controls:
        if isinstance(control, EmptyImage):
            found["empty"] = showing(samples, Image(control.empty))
        else:
            found[control] = made[control]()
    return found


def controls_of(recipe: Recipe) -> tuple[Control, ...]:
    """Returns the controls of a recipe, with absolute paths."""
    controls = recipe.evaluate.controls if recipe.evaluate is not None else ()
    return tuple(
        EmptyImage(empty=str(recipe.path(each.empty))) if isinstance(each, EmptyImage) else each
        for each in controls
    )


def control_problems(recipe: Recipe) -> list[Problem]:
    """Returns what is wrong with the image files of controls. Reads their headers only."""
    problems: list[Problem] = []
    for control in controls_of(recipe):
        if isinstance(control, EmptyImage):
            try:
                check_header(control.empty, "pad")
            except UserError as error:
                where = recipe.where("evaluate.controls")
                problems += [
                    replace(problem, where=f"{where}, {problem.where}") for problem in error.problems
                ]
    return problems


def showing(samples: Sequence[Sample], image: Image) -> list[Sample]:
    """Returns the samples with one image in place of every image."""
    return [replace(s, images=(image,) * len(s.images)) for s in samples]


def blank(samples: Sequence[Sample], *, edit: Blank) -> list[Sample]:
    """Returns the samples with every image replaced by one of a single colour.

    All of them are edits of one file, so the model reads this image once for all questions.
    """
    first = next((replace(image, edit=edit) for s in samples for image in s.images), None)
    return showing(samples, first) if first else list(samples)


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
