"""Draws docs/miniature.svg from docs/miniature/GRID.json: `python docs/miniature_plot.py` (`pip install -e ".[docs]"`).

Each line is an arm of a grid; its marks are differences in points of balanced accuracy, with their 95 % intervals.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent
IMAGE, GRIDS = DOCS / "miniature.svg", DOCS / "miniature"
FOOT = 0.9  # inches below the lines
INK, PALE, FIRST, SECOND = "#22303c", "#8795a1", "#2f6db3", "#d9822b"
# base -> (grid, arm, words)
LINES = {
    "against plain LLaVA": [
        ("all_parts", "direct", "all parts, each weight 1"),
        ("all_parts_retrained", "direct", "the same, encoder and decoder trained again"),
        ("low_weights", "order_0_1", "all parts, image order 0.1"),
        ("low_weights", "all_0_02", "all parts, each weight 0.02"),
        ("all_parts_double", "direct", "all parts, double the steps in both"),
        ("decoder", "direct", "all parts, on a wider decoder"),
        ("from_nothing", "nothing", "no part trained before"),
    ],
    "against all parts, each weight 1": [
        ("weights", "all_0_3", "each weight 0.3"),
        ("weights", "all_0_1", "each weight 0.1"),
        ("weights", "all_0_02", "each weight 0.02"),
        ("weights", "order_0_1", "image order 0.1"),
        ("weights", "guided_0_1", "guided loss 0.1"),
        ("finetune_order", "off", "no image order in stage 2"),
        ("guided", "off", "no guided loss"),
        ("guided", "stage_2", "guided loss in stage 2 alone"),
        ("order_read", "visual", "order read from visual tokens"),
        ("token_place", "start", "directed token at the start"),
        ("directed_tokens", "of_4", "4 directed tokens"),
        ("directed_tokens", "of_16", "16 directed tokens"),
        ("permutations", "of/12", "12 permutations"),
        ("permutations", "of/48", "48 permutations"),
        ("data", "half", "half the data and steps"),
        ("data", "double", "double the steps, records repeated"),
        ("guided_readings", "mass", "guided loss: mass"),
        ("guided_readings", "predict", "guided loss: rows that predict"),
        ("guided_readings", "mass_predict", "guided loss: mass, rows that predict"),
        ("guided_readings", "last_layer", "guided loss: last layer"),
        ("guided_readings", "mass_last", "guided loss: mass, predict, last layer"),
    ],
    "no image order in stage 2; against both shuffles in stage 1": [
        ("shuffling", "image", "image alone shuffled"),
        ("shuffling", "text", "text alone shuffled"),
        ("shuffling", "none", "nothing shuffled"),
    ],
}  # fmt: skip
MARKS = {  # (suffix of the grid's file, what is equal) -> words, colour, whether filled
    ("", "steps"): ("equal steps", FIRST, True),
    ("", "time"): ("equal CPU time", FIRST, False),
    ("_world1", "steps"): ("second world, equal steps", SECOND, True),
    ("_world1", "time"): ("second world, equal CPU time", SECOND, False),
}


class Mark(NamedTuple):
    """Describes a difference in points, and which of `MARKS` it is."""

    kind: tuple[str, str]
    value: float
    low: float
    high: float


def marks(grid: str, arm: str) -> Iterator[Mark]:
    """Yields the measured differences of an arm; none of a grid that was not run."""
    for suffix, equal in MARKS:
        path = GRIDS / f"{grid}{suffix}.json"
        arms = json.loads(path.read_text(encoding="utf-8"))["arms"] if path.exists() else []
        for each in arms:
            if (each["variant"], each["equal"]) == (arm, equal):
                found = each["measures"]["balanced"]["difference"]
                yield Mark((suffix, equal), *(100 * found[name] for name in ("value", "low", "high")))


def drawn() -> dict[str, dict[str, list[Mark]]]:
    """Returns the marks of each line that has some, by the base and the words of the line."""
    found = {
        base: {words: list(marks(grid, arm)) for grid, arm, words in lines} for base, lines in LINES.items()
    }
    return {base: {words: each for words, each in lines.items() if each} for base, lines in found.items()}


def description() -> str:
    """Returns the figures in words, which the image carries."""
    return "; ".join(
        f"{words}, {base}, {MARKS[mark.kind][0]}: {mark.value:+.1f} ({mark.low:+.1f} to {mark.high:+.1f})"
        for base, lines in drawn().items()
        for words, found in lines.items()
        for mark in found
    )


def main() -> None:
    """Draws all lines."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.family": "DejaVu Sans", "svg.hashsalt": "lmmkit", "text.color": INK})
    groups = drawn()
    inches = 0.27 * sum(2 + len(lines) for lines in groups.values())
    figure = plt.figure(figsize=(9.6, inches + FOOT), facecolor="white")
    axes = figure.add_axes((0.36, FOOT / (inches + FOOT), 0.62, inches / (inches + FOOT)))
    y = 0.0
    for base, lines in groups.items():
        y -= 1.3
        _words(axes, -0.56, y, base, fontsize=9.5, fontweight="bold")
        for words, found in lines.items():
            y -= 1
            _words(axes, -0.54, y, words, fontsize=8.8)
            _line(axes, y, found)
        y -= 0.5
    axes.axvline(0, color=PALE, lw=1.0, zorder=0)
    axes.set(ylim=(y, 0), yticks=[])
    axes.tick_params(labelsize=8.5, colors=INK)
    axes.set_xlabel("points of balanced accuracy above or below the base, 95 % over five seeds", fontsize=9)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    shown = [axes.plot([], [], **_style(kind), lw=1.4, label=words)[0] for kind, (words, *_) in MARKS.items()]
    figure.legend(handles=shown, loc="lower left", fontsize=8, frameon=False, bbox_to_anchor=(0, 0))
    figure.savefig(IMAGE, metadata={"Date": None, "Description": description()})
    print(f"{IMAGE}: {sum(map(len, groups.values()))} lines")


def _words(axes, x: float, y: float, words: str, **style) -> None:
    """Writes words beside the axes. `x`: in widths of the axes."""
    axes.text(x, y, words, va="center", transform=axes.get_yaxis_transform(), **style)


def _line(axes, y: float, found: list[Mark]) -> None:
    """Draws the marks of one line, one above the other."""
    axes.axhline(y, color="#eef1f4", lw=0.8, zorder=0)
    for k, mark in enumerate(found):
        at, style = y + 0.2 * ((len(found) - 1) / 2 - k), _style(mark.kind)
        axes.plot([mark.low, mark.high], [at, at], color=style["color"], lw=1.4, solid_capstyle="butt")
        axes.plot(mark.value, at, **style)


def _style(kind: tuple[str, str]) -> dict:
    _, colour, filled = MARKS[kind]
    return {
        "marker": "o", "color": colour, "markerfacecolor": colour if filled else "white",
        "markersize": 4.6, "markeredgewidth": 1.3,
    }  # fmt: skip


if __name__ == "__main__":
    main()
