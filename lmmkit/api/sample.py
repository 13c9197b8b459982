"""What a data set means, before any tokenizer: samples, their turns and images, views of them.

Everything here is frozen. A task that wants a sample to look different derives a new one with
`dataclasses.replace`; nothing is edited in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["user", "assistant"]
ImageFit = Literal["crop", "pad", "stretch"]


class ImageEdit(Protocol):
    """A change of a PREPROCESSED picture; frozen and hashable, so that equal edits are one image."""

    def __call__(self, pixels_CXY: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Image:
    """A picture file (absolute path) and the edit that is run on its pixels, if any.

    `part`: where the picture lies in a larger file, (offset, bytes); not given = it is the file.
    """

    path: str
    edit: ImageEdit | None = None
    part: tuple[int, int] | None = None


@dataclass(frozen=True)
class Turn:
    """One utterance. `images` of the sample's pictures stand in front of `text`."""

    role: Role
    text: str
    images: int = 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One conversation about zero or more images, as the records file has it.

    `key` is unique in its source; `template` and `image_fit` say how the source is to be laid
    out; `meta` carries the record's further scalar fields (question type, scene) to evaluation.
    """

    key: str
    turns: tuple[Turn, ...]
    images: tuple[Image, ...] = ()
    template: str = "vicuna_v1"
    image_fit: ImageFit = "pad"
    meta: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class View:
    """One sequence derived from a sample.

    The core makes the view `main` of every sample; a task's views carry the task's instance name
    (`name` is filled in by the core). `labels` reach `Ctx.label(key)` as one tensor a key.
    """

    sample: Sample
    name: str = "main"
    supervised: bool = False
    labels: Mapping[str, int | float] = field(default_factory=dict)
