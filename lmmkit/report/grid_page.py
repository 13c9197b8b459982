"""The page of a grid of ablations, from `ablation.json`: for each thing held equal the variants beside the base."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmkit.ablation.grid import BASE
from lmmkit.errors import UserError
from lmmkit.errors.report import GRID_DAMAGED
from lmmkit.evaluate.task import Figure
from lmmkit.progress import duration, plural
from lmmkit.recipe import flow_text
from lmmkit.report.page import Page, render
from lmmkit.report.sections.measures import half_width
from lmmkit.report.wording import as_ratio, ends_of, in_words, in_words_of_size, shown_name
from lmmkit.runs.files import finite, read_json

GRID, FORMAT = "ablation.json", 1
LEVEL = 0.05
COSTS = {"steps": "steps", "tokens": "tokens", "cpu_seconds": "CPU time", "wall_seconds": "wall time"}
HEAD = {"grid": str, "file": str, "base": str, "equal": list, "measures": dict, "arms": list, "seeds": list}


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """Holds one measure of a variant: its mean, the value of each run, and the difference to the base.

    `p`: of the difference, corrected for all differences of the measure. `over`: what its interval is over.
    """

    mean: Figure | None
    values: Sequence[float]
    difference: Figure | None = None
    p: float | None = None
    over: str = ""

    @property
    def differs(self) -> bool:
        """Returns whether a corrected test at 5 % tells the difference from 0."""
        return self.p is not None and self.p < LEVEL


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """Holds a variant: its cells by measure, what it costs as text, and costs as a ratio to the base."""

    name: str
    is_base: bool
    runs: int
    cells: Mapping[str, GridCell]
    costs: Mapping[str, str]
    ratios: Mapping[str, str]
    changes: Sequence[Mapping[str, str]]
    marks: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class GridBlock:
    """Holds the variants under one thing held equal. `reach`: of the axis of differences, by measure."""

    equal: str
    rows: Sequence[GridRow]
    reach: Mapping[str, float]


def grid_page(path: Path) -> Page:
    """Returns the page of a grid: its folder, or its file. Raises `UserError` for a damaged file."""
    file = path / GRID if path.is_dir() else path
    grid = read_json(file, hint="Write it again: `lmmkit ablate GRID.yaml`.")
    if type(grid.get("format")) is not int or grid["format"] != FORMAT:
        raise UserError(GRID_DAMAGED.at(f"{file}: format", got=repr(grid.get("format")), content=f"{FORMAT}"))
    for key, kind in HEAD.items():
        if not isinstance(grid.get(key), kind) or not grid[key]:
            got = f"{grid.get(key)!r:.60}"
            raise UserError(
                GRID_DAMAGED.at(f"{file}: {key}", got=got, content=f"a {kind.__name__} with content")
            )
    if not all(isinstance(arm, dict) and isinstance(arm.get("variant"), str) for arm in grid["arms"]):
        raise UserError(
            GRID_DAMAGED.at(f"{file}: arms", got="an arm without `variant`", content="arms of the grid")
        )
    if unknown := [arm.get("equal") for arm in grid["arms"] if arm.get("equal") not in grid["equal"]]:
        content = f"one of {grid['equal']!r:.60}"
        raise UserError(GRID_DAMAGED.at(f"{file}: arms, equal", got=f"{unknown[0]!r:.60}", content=content))
    measures = [str(name) for name in grid["measures"]]
    blocks = [block for equal in grid["equal"] if (block := _block(grid, str(equal), measures))]
    shares = {name: _is_share(grid, blocks, name) for name in measures}
    drawn = {name: shares[name] and all(value >= 0 for value in _values(blocks, name)) for name in measures}
    warnings = list(_warnings(grid, blocks))
    named = grid | {key: shown_name(grid[key]) for key in ("grid", "base")}
    title = f"grid {named['grid']}"
    text = render(
        "grid", {"curves": [], "samples": []}, title=title, grid=named, blocks=blocks, measures=measures, shares=shares,
        drawn=drawn, head=_head(blocks, measures[0]), notes=_notes(blocks), warnings=warnings, cost_names=COSTS,
        seeds=in_words([str(seed) for seed in grid["seeds"]]), roots=_listed(grid.get("roots")),
        runs=_runs(grid["arms"]), command=_command(grid, file.resolve()),
    )  # fmt: skip
    return Page(text=text, warnings=warnings)


def _command(grid: Mapping[str, Any], file: Path) -> str:
    """Returns the command that makes the grid again, or continues it if the runs are still there."""
    roots = [word for root in _listed(grid.get("roots")) for word in ("--root", str(root))]
    grids = file.parent.parent
    # a file that was copied out of its store is in no folder `grids`
    store = ["--runs", str(grids.parent)] if grids.name == "grids" else []
    return shlex.join(["lmmkit", "ablate", grid["file"], *roots, *store])


def _block(grid: Mapping[str, Any], equal: str, measures: Sequence[str]) -> GridBlock | None:
    arms = [arm for arm in grid["arms"] if arm.get("equal") == equal]
    if not arms:
        return None
    base = next((arm for arm in arms if arm["variant"] == BASE), arms[0])
    rows = [_row(arm, base, measures) for arm in arms]
    differences = {name: [row.cells[name].difference for row in rows] for name in measures}
    return GridBlock(
        equal=equal, rows=rows, reach={name: half_width(found) for name, found in differences.items()}
    )


def _row(arm: Mapping[str, Any], base: Mapping[str, Any], measures: Sequence[str]) -> GridRow:
    costs, of_base = ({k: finite(_of(each, "cost").get(k)) for k in COSTS} for each in (arm, base))
    show = {
        "steps": in_words_of_size,
        "tokens": in_words_of_size,
        "cpu_seconds": duration,
        "wall_seconds": duration,
    }
    changes, same, runs = (_listed(arm.get(key)) for key in ("changes", "same_results_as", "runs"))
    marks = [f"the same results as {in_words([shown_name(str(name)) for name in same])}"] if same else []
    if arm is not base and not changes:
        marks.append("changes no key")
    steps, of_base_steps = costs["steps"], of_base["steps"]
    if arm["equal"] == "steps" and steps and of_base_steps and steps != of_base_steps:
        marks.append(f"{steps:,.0f} steps by its recipe, the base has {of_base_steps:,.0f}")
    if not runs:
        marks.append("no finished run")
    return GridRow(
        name=shown_name(str(arm["variant"])), is_base=arm is base, runs=len(runs), marks=marks,
        cells={name: _cell(_of(_of(arm, "measures"), name)) for name in measures},
        costs={k: show[k](v) for k, v in costs.items() if v is not None},
        ratios={
            k: "same" if v == b else as_ratio(v / b)
            for k, v in costs.items() if v and (b := of_base[k]) and arm is not base
        },
        changes=[
            {k: _text(each.get(k)) for k in ("key", "base", "here")} for each in changes if isinstance(each, dict)
        ],
    )  # fmt: skip


def _text(value: object) -> str:
    """Returns a value as a recipe has it, on one line."""
    text = flow_text(value) if isinstance(value, dict | list) else str(value)
    return shown_name(text.replace("\n", " "))


def _cell(measured: Mapping[str, Any]) -> GridCell:
    values = _listed(measured.get("values"))
    found = [v for each in values if isinstance(each, dict) and (v := finite(each.get("value"))) is not None]
    difference = _of(measured, "difference")
    return GridCell(
        mean=_estimate(measured), values=found, difference=_estimate(difference),
        p=finite(difference.get("p_holm")), over=str(difference.get("over", "")),
    )  # fmt: skip


def _estimate(value: Mapping[str, Any]) -> Figure | None:
    if finite(value.get("value")) is None:
        return None
    low, high = ends_of(value)
    return Figure(value=float(value["value"]), low=low, high=high, n=int(finite(value.get("n")) or 0))


def _of(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _runs(arms: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Returns variant, what is held equal, seed, data and folder of each run."""
    return [
        tuple(
            _text(each)
            for each in (arm["variant"], arm.get("equal"), *map(run.get, ("seed", "root", "folder")))
        )
        for arm in arms
        for run in _listed(arm.get("runs"))
        if isinstance(run, dict)
    ]


def _is_share(grid: Mapping[str, Any], blocks: Sequence[GridBlock], measure: str) -> bool:
    """Returns whether a measure is shown in percent, by the rule of the table of `lmmkit ablate`."""
    path = str(grid["measures"][measure])
    losses = grid.get("losses", [measure] if path.startswith("terms/") and path.count("/") == 1 else [])
    return measure not in _listed(losses) and all(abs(value) <= 1 for value in _values(blocks, measure))


def _values(blocks: Sequence[GridBlock], measure: str) -> list[float]:
    return [value for block in blocks for row in block.rows for value in row.cells[measure].values]


def _head(blocks: Sequence[GridBlock], measure: str) -> str:
    """Returns which variants are higher or lower than the base, by the corrected tests; equal outcomes once."""
    found: dict[str, list[str]] = {}
    for block in blocks:
        others = {row.name: row.cells[measure] for row in block.rows if not row.is_base}
        cells = {name: cell for name, cell in others.items() if cell.difference}
        if cells:
            found.setdefault(_outcome(cells), []).append(f"at equal {block.equal}")
    text = "; ".join(f"{outcome}, {in_words(where)}" for outcome, where in found.items())
    return f"{measure}: {text or 'no variant has been compared yet'}"


def _outcome(cells: Mapping[str, GridCell]) -> str:
    parts = []
    for word, sign in (("higher", 1), ("lower", -1)):
        names = [
            name for name, c in cells.items() if c.differs and c.difference and sign * c.difference.value > 0
        ]
        if names:
            which = in_words(names) if len(names) < 4 else f"{len(names)} of {len(cells)} variants"
            parts.append(f"{word} with {which}")
    some = next(iter(cells)) if len(cells) == 1 else f"any of {len(cells)} variants"
    return ", ".join(parts) or f"no difference to the base shown for {some}"


def _notes(blocks: Sequence[GridBlock]) -> list[str]:
    over = {
        row.cells[m].over for block in blocks for row in block.rows for m in row.cells if row.cells[m].over
    }
    found = []
    if "seeds" in over:
        found.append(
            "Intervals are over seeds, by Student's t: what another seed would give. A variant and the base are paired "
            "by seed and data."
        )
    if "questions" in over:
        found.append(
            "Intervals of differences are over questions, drawn by image or scene, each the mean of all seeds: what "
            "another seed would give is not in them."
        )
    rows = [row for block in blocks for row in block.rows]
    tested = Counter(name for row in rows for name, cell in row.cells.items() if cell.p is not None)
    if n := max(tested.values(), default=0):
        found.append(
            f"A variant is called different where p, by Holm's correction for {plural(n, 'difference')} of a measure, "
            f"is below {LEVEL:g}."
        )
    if not all(row.is_base for row in rows):
        found.append(
            "That no difference is shown is no proof of equality: the interval says what remains possible."
        )
    return found


def _warnings(grid: Mapping[str, Any], blocks: Sequence[GridBlock]):
    if len(grid["seeds"]) == 1:
        yield "One seed: there is no interval over seeds, and a difference may come from the seed alone."
    marked: dict[str, list[str]] = {}
    for block in blocks:
        for row in block.rows:
            if row.marks:
                marked.setdefault(f"{row.name}: {'; '.join(row.marks)}", []).append(f"equal {block.equal}")
    for text, where in marked.items():
        yield f"{text} (at {in_words(where)})."
    branch = finite(_of(grid, "branch").get("times")) or 1
    expected = int(len(grid["seeds"]) * max(1, len(_listed(grid.get("roots")))) * branch)
    for block in blocks:
        few = [f"{row.name} ({row.runs} of {expected})" for row in block.rows if 0 < row.runs < expected]
        if few:
            yield f"Runs are missing (equal {block.equal}): {in_words(few)}. The grid is not complete."
    for name in grid["measures"]:
        if blocks and not _values(blocks, name) and any(row.runs for block in blocks for row in block.rows):
            yield f"{name}: no run has the figure {grid['measures'][name]}."
    for block in blocks:
        some = [
            f"{name} of {row.name} ({len(row.cells[name].values)} of {row.runs})"
            for name in grid["measures"]
            for row in block.rows
            if 0 < len(row.cells[name].values) < row.runs
        ]
        if some:
            yield f"Not all runs have the figure (equal {block.equal}): {in_words(some)}."
