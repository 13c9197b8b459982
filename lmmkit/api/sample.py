"""The content of a data set before tokenization: samples, their turns and images, and views of them.

Everything here is frozen. A task that needs a changed sample creates a new one with
`dataclasses.replace`; nothing is edited in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Label: TypeAlias = "bool | int | float | tuple | np.ndarray | Tensor"
"""A number, or an array of numbers."""
Role = Literal["user", "assistant"]
FitName = Literal["crop", "pad", "stretch"]
TemplateName = Literal["plain", "vicuna_v1", "chatml", "llama3"]
AfterEos = Literal["published", "hf437"]
Supervision = Literal["none", "read", "train"]


@dataclass(frozen=True, kw_only=True)
class AnyRes:
    """Describes how images are cut into tiles, as LLaVA-NeXT does: an overview, then the tiles of the best of `grids`,
    (lines, columns) of tiles. A grid of more than `max_tiles` tiles is not used; None: all are.
    """

    grids: tuple[tuple[int, int], ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # LLaVA-NeXT's
    max_tiles: int | None = None

    @property
    def used(self) -> tuple[tuple[int, int], ...]:
        """Returns the grids that images may be cut into."""
        most = self.max_tiles
        return tuple(grid for grid in self.grids if most is None or grid[0] * grid[1] <= most)

    def __str__(self) -> str:
        return f"anyres {', '.join(f'{lines}x{columns}' for lines, columns in self.used)}"


@dataclass(frozen=True, kw_only=True)
class Native:
    """Describes how images keep their shape: each side is rounded to a multiple of `multiple` patches. An image of more
    than `max_patches` is made smaller.
    """

    max_patches: int
    multiple: int = 1

    def __str__(self) -> str:
        return f"native, at most {self.max_patches} patches"


ImageFit: TypeAlias = FitName | AnyRes | Native


class ImageEdit(Protocol):
    """Changes a PREPROCESSED image; frozen and hashable, so that equal edits of an image are one image."""

    def __call__(self, pixels_CXY: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Image:
    """Describes an image file (absolute path) and the edit applied to its pixels, if any.

    `part`: where the image is in a larger file, (offset, bytes); None if it is the complete file. `cell`: where it
    is in a parquet or Arrow file: record, column, number in the cell. `address`: the image is written as a `data:`
    address with this hash, in the JSON at `part` or in the cell.
    """

    path: str
    edit: ImageEdit | None = None
    part: tuple[int, int] | None = None
    cell: tuple[int, str, int] | None = None
    address: str | None = None


@dataclass(frozen=True)
class Turn:
    """Holds one utterance, and `images` of the sample's images.

    `places`: for each image the number of characters of `text` that come before it. Without places all
    images come before the text, in the form of the chat template. `supervised`: whether the model learns
    the utterance, if it is an answer.
    """

    role: Role
    text: str
    images: int = 0
    places: tuple[int, ...] = ()
    supervised: bool = True


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Holds one conversation about zero or more images, as read from a record.

    `key` is unique in its source. `template` and `image_fit` are the chat template and the image fit of
    the source. `system` replaces the system prompt of the template; empty: the template's own. `meta` passes
    the other fields of the record (question type, scene, right answers) to evaluation.
    """

    key: str
    turns: tuple[Turn, ...]
    images: tuple[Image, ...] = ()
    template: str = "vicuna_v1"
    image_fit: ImageFit = "pad"
    system: str = ""
    meta: Mapping[str, str | int | float | tuple[str, ...] | tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class View:
    """Describes one sequence derived from a sample.

    The core makes the view `main` of every sample. The views of a task have its instance name as `name`,
    set by the core, and `role` names the kind of a view, if a task makes several. `supervision`: what its
    supervised rows are for: nothing, to be read (targets of a `LogProb`, but of no next-token term), or to train on.
    `Ctx.label(key)` returns the `labels` as one tensor per key. `sample_labels` are those that losses give to
    the sample, by instance; the core sets them.
    """

    sample: Sample
    name: str = "main"
    role: str = ""
    supervision: Supervision = "none"
    labels: Mapping[str, Label] = field(default_factory=dict)
    sample_labels: Mapping[str, Mapping[str, Label]] = field(default_factory=dict)
