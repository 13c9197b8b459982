"""Calls into what makes views: the views, edits of their images, and the scores and puzzles of tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lmmkit.api.components import AuxTask, OtherSamples, ViewMaker
from lmmkit.api.ctx import Ctx
from lmmkit.api.puzzle import Puzzle
from lmmkit.api.sample import ImageEdit, Sample, View
from lmmkit.plugin_calls.forms import NUMBER, wrong_view
from lmmkit.plugin_calls.guard import calling, returned, shown

PUZZLE = "`Puzzle`s of words or tile numbers, with a chance"


def views(task: ViewMaker, sample: Sample, rng: np.random.Generator, others: OtherSamples) -> Sequence[View]:
    """Returns the views of a task, which gets `others` if it asks for them."""
    if not isinstance(task.roles, tuple | list):
        raise returned(task.name, "roles", task, shown(task.roles), "a tuple of texts")
    more = () if task.others == "none" else (others,)
    with calling(task.name, "views", task):
        found = task.views(sample, rng, *more)
    if not isinstance(found, list | tuple):
        raise returned(task.name, "views", task, shown(found), "a list of View")
    for view in found:
        if wrong := wrong_view(view):
            raise returned(task.name, "views", task, *wrong)
    return found


def edited(name: str, change: ImageEdit, pixels_CXY: Tensor) -> Tensor:
    """Returns the pixels of an image after the edit that a task has given it."""
    with calling(name, "edit of an image", change):
        found = change(pixels_CXY)
    fits = isinstance(found, Tensor) and found.shape == pixels_CXY.shape and found.dtype == pixels_CXY.dtype
    if not fits:
        raise returned(name, "edit of an image", change, shown(found), shown(pixels_CXY))
    return found


def score(task: AuxTask, view: View, text: str) -> tuple[float, float]:
    """Returns the score of a generated text, and the expected score of a guess."""
    with calling(task.name, "score", task):
        found = task.score(view, text)
    pair = isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(x, NUMBER) for x in found)
    if not pair or not all(0 <= x <= 1 for x in found):
        raise returned(task.name, "score", task, shown(found), "(score, score of a guess), each from 0 to 1")
    return float(found[0]), float(found[1])


def puzzles(task: AuxTask, ctx: Ctx) -> Sequence[Puzzle]:
    """Returns the puzzles of a task's views."""
    with calling(task.name, "puzzles", task):
        found = task.puzzles(ctx)
    if not isinstance(found, list | tuple) or not all(map(_is_puzzle, found)):
        raise returned(task.name, "puzzles", task, shown(found), PUZZLE)
    if found and len(found) != (n := len(ctx.batch.views_of(task.name))):
        raise returned(
            task.name, "puzzles", task, f"{len(found)} puzzles", f"{n}, one for each view, or none"
        )
    return found


def text_puzzle(task: AuxTask, view: View, text: str) -> Puzzle | None:
    """Returns the puzzle of a view and the generated text, or None."""
    with calling(task.name, "text_puzzle", task):
        found = task.text_puzzle(view, text)
    if found is not None and not _is_puzzle(found):
        raise returned(task.name, "text_puzzle", task, shown(found), PUZZLE)
    return found


def _is_puzzle(found: object) -> bool:
    if not isinstance(found, Puzzle):
        return False
    pieces = (found.shuffled, found.predicted, found.gold)
    return (
        all(isinstance(each, tuple) and all(type(x) in (int, str) for x in each) for each in pieces)
        and all(x is None or type(x) in (int, float) for x in (found.p_predicted, found.p_gold))
        and type(found.chance) in (int, float)
    )
