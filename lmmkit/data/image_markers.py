"""Reads the `<image>` markers of questions: where in the text their images are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from lmmkit.api.sample import Turn
from lmmkit.errors import UserError
from lmmkit.errors.data import CHAT_MARKERS
from lmmkit.progress import plural

MARKER = "<image>"


def with_images(text: str, images: int) -> Turn:
    """Returns the user's turn of a text whose markers mean `images` images; without images, the text alone.

    Images before all text come before it in the form of the chat template, as in LLaVA. So does the only
    image of a text if its marker is at the end, or if the text has several markers. All other images have
    the places of their markers.
    """
    if not images:
        return Turn("user", text)
    first, *others = text.strip().split(MARKER)
    *inner, last = first, *others
    leading = not any(part.strip() for part in inner)
    if leading or (images == 1 and (len(others) > 1 or not last)):
        return Turn("user", "".join((first, *others)).strip(), images)
    return Turn("user", "".join((first, *others)), images, tuple(accumulate(map(len, inner))))


def read_prompt(turns: Sequence[Turn], images: int) -> tuple[Turn, ...]:
    """Returns the turns of a prompt with images in place of the markers of its questions.

    Raises `UserError` if there are markers, but not one for each image.
    """
    marks = [turn.text.count(MARKER) if turn.role == "user" and not turn.places else 0 for turn in turns]
    placed = [
        with_images(turn.text, mark) if mark and turn.images in (0, mark) else turn
        for turn, mark in zip(turns, marks, strict=True)
    ]
    fits = all(mark in (0, turn.images) for turn, mark in zip(placed, marks, strict=True))
    if any(marks) and not (fits and sum(turn.images for turn in placed) == images):
        raise UserError(CHAT_MARKERS.at("prompt", got=f"{sum(marks)} {MARKER} and {plural(images, 'image')}"))
    return tuple(placed)


def marked(turn: Turn) -> str:
    """Returns the text of a turn with a marker for each image at its place."""
    if not turn.places:
        return f"{MARKER}\n" * turn.images + turn.text
    cuts = (0, *turn.places, len(turn.text))
    return MARKER.join(turn.text[a:b] for a, b in pairwise(cuts))
