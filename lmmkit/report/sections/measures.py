"""The table of a summary: accuracy, attention on images and puzzles of each run, and the differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmmkit.evaluate.answers.schema import OWN
from lmmkit.evaluate.task import Figure
from lmmkit.report.asked import AskedRuns, RunAnswers, score_of
from lmmkit.report.loaded_run import LoadedRun
from lmmkit.report.sections.puzzles import PuzzleResult
from lmmkit.report.wording import in_percent, in_words

Value = Callable[[RunAnswers, str], float | None]
IMAGES = {
    OWN: "with its own image", "swapped": "with another question's image", "blank": "with a blank image",
    "black": "with a black image", "none": "without an image", "empty": "with an empty image",
}  # fmt: skip
LOOKS = {
    "image_attention": ("attention of its answers on the image", "mass"),
    "deciding_attention": ("attention of the row that decides on the answer", "deciding_mass"),
    "object_attention": ("that row's attention on the object asked for", "object"),
}
"""The figures of attention in results.json: what they are, and the field of a line of attention.jsonl."""
WIDEST = 1e6  # of half an axis: a damaged file may have any number
GAINS = {"visual_gain_swapped": "swapped", "visual_gain": "blank"}


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Holds a line of the table: a figure of each run, and of each further run minus the first."""

    label: str
    note: str = ""
    figures: Sequence[Figure | None]
    differences: Sequence[Figure | None] = ()
    absent: str = ""


def half_width(differences: Sequence[Figure | None]) -> float:
    """Returns half the width of an axis of differences: a multiple of 5 points that holds all intervals."""
    ends = [abs(end) for d in differences if d for end in (d.value, d.low, d.high) if end is not None]
    return max(0.05, math.ceil(min(max(ends, default=0.0), WIDEST) * 20 - 1e-9) / 20)


def leaves_out_zero(difference: Figure | None) -> bool:
    """Returns whether an interval has 0 outside."""
    if difference is None or difference.low is None or difference.high is None:
        return False
    return difference.low > 0 or difference.high < 0


def accuracies(asked: AskedRuns) -> list[Measure]:
    """Returns the headline under each condition; [] for one that is no share, which the page names instead."""
    runs = asked.runs
    if not asked.in_shares:
        return []
    what = "right" if asked.is_mean else asked.figure
    found = [
        Measure(
            label=f"{what}, {IMAGES[condition]}", figures=[asked.headline(run, condition) for run in runs],
            differences=_differences(asked, score_of(condition), most=None if condition == OWN else 2),
        )
        for condition in asked.conditions
    ]  # fmt: skip
    for name, condition in GAINS.items():
        figures = [run.figure(asked.task or "", name) for run in runs]
        if any(figures):
            own, other = score_of(OWN), score_of(condition)
            note = f"own image less {'another' if condition == 'swapped' else 'a blank one'}"
            found.append(
                Measure(
                    label="gain from the right image", note=note,
                    figures=figures, differences=_differences(asked, _less(own, other), most=2),
                )
            )  # fmt: skip
            break
    guesses = [asked.headline(run) for run in runs]
    if any(f and f.chance is not None for f in guesses):
        chances = [(f and f.chance is not None and Figure(value=f.chance, n=f.n)) or None for f in guesses]
        found.append(
            Measure(label="commonest answer to each question", note="knows no image", figures=chances)
        )
    return found


def _less(own: Value, other: Value) -> Value:
    def value(run: RunAnswers, id: str) -> float | None:
        a, b = own(run, id), other(run, id)
        return None if a is None or b is None else a - b

    return value


def _differences(asked: AskedRuns, value: Value, most: int | None) -> list[Figure | None]:
    """Returns the differences of each run to the first. `most`: runs above which they are left out."""
    n = len(asked.runs)
    if (most is not None and n > most) or not asked.is_mean:
        return [None] * (n - 1)
    return [asked.difference(0, i, value) for i in range(1, n)]


def attention_measures(asked: AskedRuns) -> list[Measure]:
    """Returns the attention of the answers on images, as far as a run has it."""
    found, pair = [], len(asked.runs) == 2
    trained = [run.name for run in asked.runs if _trains_attention(run)]
    for name, (label, of_line) in LOOKS.items():
        figures = [run.figure(asked.task or "", name) for run in asked.runs]
        if any(figures):
            even = next((f.chance for f in figures if f and f.chance is not None), None)
            note = "" if even is None else f"spread evenly {in_percent(even)}"
            if trained:
                note += f"; {in_words(trained)} trained for attention"
            looks = [asked.difference(0, 1, lambda run, id, name=of_line: run.look(id, name))] if pair else []
            found.append(Measure(label=label, note=note, figures=figures, differences=looks))
    return found


def _trains_attention(run: LoadedRun) -> bool:
    """Returns whether a term of the last stage has attention mass as a metric."""
    return bool(run.steps) and any(
        key.startswith("terms/") and key.endswith("/mass") for key in run.steps[-1]
    )


def puzzle_measures(runs: Sequence[LoadedRun], puzzles: Sequence[PuzzleResult]) -> list[Measure]:
    """Returns the share of pieces in their right order, for each task that shuffles."""
    found = []
    for name in dict.fromkeys(puzzle.instance for puzzle in puzzles):
        of_run = {puzzle.run: puzzle for puzzle in puzzles if puzzle.instance == name}
        some = next(iter(of_run.values()))
        figures = [
            Figure(value=p.right / p.n, chance=p.chance, n=p.n) if (p := of_run.get(i)) and p.n else None
            for i in range(len(runs))
        ]
        kind = "tile order of shuffled images" if some.grid else "shuffled sentences restored"
        note = f"{name}, of {some.n:,}, chance {in_percent(some.chance)}"
        found.append(Measure(label=kind, note=note, figures=figures, absent="not trained"))
    return found
