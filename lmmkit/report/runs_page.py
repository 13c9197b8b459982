"""The page of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmmkit.progress import plural
from lmmkit.report.asked import ask_runs
from lmmkit.report.image_shelf import ImageShelf
from lmmkit.report.loaded_run import DRAWN, load_runs
from lmmkit.report.page import Page, byte_size, render
from lmmkit.report.sections.accuracy import forest_of
from lmmkit.report.sections.puzzles import puzzle_results, shown_puzzles
from lmmkit.report.sections.samples import fits_of, samples_of
from lmmkit.report.sections.setup import CLASSES, setup_of
from lmmkit.report.sections.summary import summarise_runs
from lmmkit.report.sections.training import training_of
from lmmkit.report.wording import in_words

FEW, LIMITS = 4, (2_900_000, 4_900_000)
"""Bytes of a page of at most `FEW` runs, and of one of more."""


def runs_page(paths: Sequence[Path], *, on: str | None = None, limit: int | None = None) -> Page:
    """Returns the page of runs.

    Args:
        paths: run folders; the others are compared with the first.
        on: the task whose questions the page is about.
        limit: bytes of the page.

    Raises:
        UserError: folders that are no run, damaged files, or runs without a common question.
    """
    runs = load_runs(paths)
    asked = ask_runs(runs, on)
    results = puzzle_results(runs)
    training, puzzles, setup = training_of(runs), shown_puzzles(results), setup_of(runs, asked.task)
    summary, forest, shelf = summarise_runs(asked, results), forest_of(asked), ImageShelf()
    names = [run.name for run in runs]
    values = {
        "runs": runs, "drawn": runs[:DRAWN], "title": in_words(names) if len(names) < 4 else plural(len(names), "run"),
        "summary": summary, "forest": forest, "training": training, "puzzles": puzzles, "setup": setup,
        "classes": CLASSES, "asked": asked, "fits": fits_of(asked),
    }  # fmt: skip
    shown = {
        path: shelf.place(path) for each in puzzles for card in each.cards for path in card["images"][:1]
    }
    values["images"] = shown

    def page(samples) -> str:
        early = set(
            shown.values()
        )  # these are in the page itself, where a browser without scripts shows them
        data = {
            "curves": training.curves if training else [], "samples": samples.rows if samples else [],
            "names": [names[i] for i in samples.runs] if samples else [], "runs": list(samples.runs) if samples else [],
            "conditions": samples.conditions if samples else [],
            "images": [None if i in early else uri for i, uri in enumerate(shelf.uris())],
            "fits": [values["fits"][i] for i in samples.runs] if samples else [],
        }  # fmt: skip
        return render("runs", data, **values, samples=samples, uris=shelf.uris(), unread=len(shelf.missing))

    most = limit or LIMITS[len(runs) > FEW]
    samples = samples_of(asked, shelf, room=most - byte_size([page(None)]))
    return Page(text=page(samples), warnings=summary.warnings)
