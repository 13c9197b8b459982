"""Holds the views of a sample as sequences, before they are packed."""

from __future__ import annotations

from typing import NamedTuple

from lmmkit.api.layout import Layout
from lmmkit.api.sample import View
from lmmkit.data.images import ImageRef


class LaidOut(NamedTuple):
    """Holds a view and the spans of its sequence."""

    view: View
    layout: Layout


class SizedSample(NamedTuple):
    """Holds the views of one sample, and the number of rows they take after their prefixes are merged."""

    members: tuple[LaidOut, ...]
    size: int
    source: str = ""


def images_of(member: LaidOut) -> list[ImageRef]:
    """Returns the images of a view in the order of its spans."""
    fit = member.view.sample.image_fit
    return [(span.image, fit) for span in member.layout if span.image is not None]
