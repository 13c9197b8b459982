"""Draws the documents' image: `python docs/figures.py` writes docs/forest.svg (`pip install -e ".[docs]"`).

The forest is grown by the library itself; words stand for tokens, and the image has 3 x 3 patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

from lmmkit.attention.forest import grow
from lmmkit.data.packing import MIN_SHARED
from lmmkit.scenes.draw import draw
from lmmkit.scenes.scene import make_scene

INK, PALE = "#22303c", "#8795a1"
COLOURS = {
    "bos": "#8795a1", "image": "#4c86c6", "shuffled image": "#8e6bbf", "read words": "#e3a63b",
    "caption": "#3f9e6e", "drt": "#d2544b",
}  # fmt: skip
SCENES = (make_scene(3, "train", i) for i in range(200))
SCENE = next(
    scene for scene in SCENES if len(scene.things) == 2 == len({thing.shape for thing in scene.things})
)
CAPTION = (*(word for thing in SCENE.things for word in (thing.colour, thing.shape)), "\\n")
WORDS = ("Order", "…:", *(CAPTION[i] for i in (3, 0, 2, 1)), "\\n")
SHUFFLE = (4, 7, 0, 8, 2, 5, 1, 3, 6)
TILE, WORD, BEND, SIDE = 1.2, 1.86, 1.6, 3.3


@dataclass(frozen=True)
class Cell:
    """Describes one row of the forest as it is drawn: kind, word or number of an image tile."""

    kind: str
    text: str = ""
    tile: int = -1
    learned: bool = False

    @property
    def width(self) -> float:
        """Returns the width: tiles are square, words are wide."""
        return TILE if self.tile >= 0 else WORD if self.kind in ("caption", "read words") else 1.25


def views() -> list[list[Cell]]:
    """Returns the three views of stage 1: next_token's, text_order's, image_order's."""
    bos = [Cell("bos", "bos")]
    image = [Cell("image", tile=i) for i in range(9)]
    shuffled = [Cell("shuffled image", tile=i) for i in SHUFFLE]
    words = [Cell("read words", w) for w in WORDS]
    learned, read = ([Cell("caption", w, learned=flag) for w in CAPTION] for flag in (True, False))
    return [
        bos + image + learned,
        bos + image + words + learned,
        bos + shuffled + read + [Cell("drt", "drt")],
    ]


def main() -> None:
    """Grows the forest of one sample and draws it beside its mask."""
    members = views()
    codes: dict[object, int] = {}
    forest, paths = grow(
        [[np.array([_code(cell, codes) for cell in view]) for view in members]], min_shared=MIN_SHARED
    )
    cells: dict[int, Cell] = {}
    for view, path in zip(members, paths, strict=True):
        cells |= {int(row): cell for row, cell in zip(path, view, strict=True)}

    plt.rcParams.update({"font.family": "DejaVu Sans", "svg.hashsalt": "lmmkit", "text.color": INK})
    figure = plt.figure(figsize=(13.2, 4.75), facecolor="white")
    left = figure.add_axes((0.006, 0.01, 0.655, 0.98))
    right = figure.add_axes((0.695, 0.06, 0.298, 0.80))
    _draw_trees(left, cells, paths)
    _draw_mask(right, cells, forest.see().numpy())
    path = Path(__file__).with_name("forest.svg")
    figure.savefig(path, metadata={"Date": None})
    print(f"{path}: {len(forest)} rows")


def _code(cell: Cell, codes: dict[object, int]) -> int:
    return codes.setdefault(
        (cell.kind.replace("read words", "text").replace("caption", "text"), cell.text, cell.tile), len(codes)
    )


def _draw_trees(axes, cells: dict[int, Cell], paths) -> None:
    main_path, text_path, image_path = (path.tolist() for path in paths)
    trunk = [row for row in main_path if row in text_path]
    high, mid, low, own = 12.6, 10.2, 7.8, 1.3
    end = _chain(axes, cells, trunk, 0.0, mid)
    up = _chain(axes, cells, main_path[len(trunk) :], end + BEND, high)
    down = _chain(axes, cells, text_path[len(trunk) :], end + BEND, low)
    other = _chain(axes, cells, image_path, 0.0, own)
    for y in (high, low):
        _bend(axes, end, mid, end + BEND, y)
    _leaf(axes, up + 0.4, high, "next_token, guided_loss", "write the caption, look at the image")
    _leaf(axes, down - 5 * WORD + 0.1, low - 2.0, "text_order", "write it from its shuffled words")
    _leaf(axes, other + 0.4, own, "image_order", "which of K permutations?")
    _whole_image(axes, range(9), mid + 1.3, "one trunk, computed\nonce for two views")
    _whole_image(axes, SHUFFLE, own + 1.3, "a tree of its own,\nfor the image differs")
    _legend(axes)
    axes.set_xlim(-0.3, end + BEND + 12 * WORD + 0.3)
    axes.set_ylim(-2.6, 15.4)
    axes.set_aspect("equal")
    axes.axis("off")


def _whole_image(axes, order, y: float, title: str) -> None:
    """Draws the whole image, its tiles in `order`, above its rows."""
    tiles = _tiles()
    x = 1.25
    for place, tile in enumerate(order):
        i, j = divmod(place, 3)
        left, top = x + j * SIDE / 3, y + SIDE - i * SIDE / 3
        axes.imshow(
            tiles[tile],
            extent=(left, left + SIDE / 3, top - SIDE / 3, top),
            zorder=3,
            interpolation="bilinear",
        )
    colour = COLOURS["image" if list(order) == sorted(order) else "shuffled image"]
    axes.add_patch(Rectangle((x, y), SIDE, SIDE, fill=False, ec=colour, lw=2.2, zorder=4))
    axes.text(x + SIDE + 0.6, y + SIDE / 2, title, fontsize=10.5, fontweight="bold", va="center")


def _tiles() -> list[np.ndarray]:
    whole = np.asarray(draw(SCENE).convert("RGB").resize((96, 96)))
    return [whole[32 * i : 32 * i + 32, 32 * j : 32 * j + 32] for i in range(3) for j in range(3)]


def _chain(axes, cells: dict[int, Cell], rows: list[int], x: float, y: float) -> float:
    """Draws cells in a line from x; returns where they end."""
    tiles, half = _tiles(), TILE / 2
    for row in rows:
        cell = cells[row]
        colour = COLOURS[cell.kind]
        if cell.tile >= 0:
            inner = (x + 0.07, x + TILE - 0.07, y - half + 0.07, y + half - 0.07)
            axes.imshow(tiles[cell.tile], extent=inner, zorder=3, interpolation="bilinear")
            side = TILE - 0.14
            axes.add_patch(
                Rectangle((inner[0], inner[2]), side, side, fill=False, ec=colour, lw=1.8, zorder=4)
            )
        else:
            box = FancyBboxPatch(
                (x + 0.1, y - 0.5), cell.width - 0.2, 1.0, boxstyle="round,pad=0.03,rounding_size=0.16",
                fc=colour if cell.learned or cell.kind in ("drt", "bos") else colour + "40",
                ec=colour, lw=1.3, zorder=3,
            )  # fmt: skip
            axes.add_patch(box)
            dark = cell.kind in ("caption", "read words") and not cell.learned
            axes.text(x + cell.width / 2, y - 0.02, cell.text, ha="center", va="center", zorder=5,
                      fontsize=6.9, color=INK if dark else "white")  # fmt: skip
        axes.text(x + cell.width / 2, y - 0.75, str(row), ha="center", va="top", fontsize=5.4, color=PALE)
        x += cell.width
    return x


def _bend(axes, x0: float, y0: float, x1: float, y1: float) -> None:
    t = np.linspace(0, 1, 40)
    ease = t * t * (3 - 2 * t)
    axes.plot(
        x0 + 0.08 + (x1 - x0 - 0.1) * t,
        y0 + (y1 - y0) * ease,
        color=INK,
        lw=1.3,
        zorder=2,
        solid_capstyle="round",
    )


def _leaf(axes, x: float, y: float, term: str, what: str) -> None:
    axes.text(x, y + 0.4, term, fontsize=8.8, fontweight="bold", va="center", family="DejaVu Sans Mono")
    axes.text(x, y - 0.45, what, fontsize=7.6, va="center", color=INK)


def _legend(axes) -> None:
    names = {
        "bos": "bos", "image": "image", "shuffled image": "shuffled image", "read words": "words, read",
        "caption": "caption, supervised", "pale": "caption, read", "drt": "drt, a learned token",
    }  # fmt: skip
    x = 0.1
    for kind, name in names.items():
        fill = (
            COLOURS["caption"] + "40"
            if kind == "pale"
            else COLOURS[kind] + ("40" if kind == "read words" else "")
        )
        edge = COLOURS["caption"] if kind == "pale" else COLOURS[kind]
        axes.add_patch(Rectangle((x, -2.1), 0.6, 0.6, fc=fill, ec=edge, lw=1.0))
        axes.text(x + 0.85, -1.82, name, fontsize=7.6, va="center")
        x += 2.0 + 0.252 * len(name)


def _draw_mask(axes, cells: dict[int, Cell], see: np.ndarray) -> None:
    n = len(see)
    shade = np.ones((n, n, 3))
    for k in range(n):
        colour = np.array(mpl.colors.to_rgb(COLOURS[cells[k].kind]))
        shade[see[:, k], k] = colour
    axes.imshow(shade, extent=(0, n, n, 0), interpolation="nearest")
    spans = _spans(cells)
    for start, stop, kind in spans:
        for edge in (start, stop):
            axes.axvline(edge, color="white", lw=0.7)
            axes.axhline(edge, color="white", lw=0.7)
        axes.add_patch(
            Rectangle(
                (start + 0.15, -1.9), stop - start - 0.3, 1.2, fc=COLOURS[kind], ec="none", clip_on=False
            )
        )
        axes.add_patch(
            Rectangle(
                (-1.9, start + 0.15), 1.2, stop - start - 0.3, fc=COLOURS[kind], ec="none", clip_on=False
            )
        )
    axes.set_xlim(0, n)
    axes.set_ylim(n, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#c8d0d8")
    axes.text(n / 2, -4.6, "see(): row q attends to key k", ha="center", fontsize=10.5, fontweight="bold")
    axes.text(
        n / 2,
        -2.75,
        "iff  enter[k] <= enter[q] < leave[k]",
        ha="center",
        fontsize=8.2,
        family="DejaVu Sans Mono",
    )
    axes.text(-2.7, n / 2, "q", ha="center", va="center", fontsize=9, style="italic")
    axes.text(n / 2, n + 1.5, "k", ha="center", va="center", fontsize=9, style="italic")


def _spans(cells: dict[int, Cell]) -> list[tuple[int, int, str]]:
    """Returns (first row, row after, kind) of each stretch of one kind."""
    out: list[tuple[int, int, str]] = []
    for row in range(len(cells)):
        kind = cells[row].kind
        if out and out[-1][2] == kind and cells[row].learned == cells[row - 1].learned:
            out[-1] = (out[-1][0], row + 1, kind)
        else:
            out.append((row, row + 1, kind))
    return out


if __name__ == "__main__":
    main()
