"""Puzzles: what order tasks shuffled, and the order that a run gave it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmmkit.report.loaded_run import LoadedRun
from lmmkit.runs.files import finite, read_json

IMAGES, SENTENCES = (12, 4), (8, 3)
"""How many puzzles are shown, and how many of these may be chosen because they are wrong."""
FILE = "puzzles.json"


@dataclass(frozen=True, kw_only=True)
class PuzzleResult:
    """Holds what one run made of the puzzles of a plugin instance. `run`: its number. `grid`: 0 for words."""

    run: int
    instance: str
    stage: str
    n: int
    right: int
    chance: float
    grid: int
    puzzles: Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ShownPuzzles:
    """Holds the puzzles on the page: the first of the file, then some that are wrong."""

    result: PuzzleResult
    cards: Sequence[dict[str, Any]]
    first: int
    wrong: int


def puzzle_results(runs: Sequence[LoadedRun]) -> list[PuzzleResult]:
    """Returns the puzzles of all runs. Raises `UserError` for a damaged file."""
    return [result for i, run in enumerate(runs) for result in _of_run(i, run)]


def _of_run(number: int, run: LoadedRun) -> Iterator[PuzzleResult]:
    for file in sorted(run.folder.path.glob(f"answers/*/*/{FILE}")):
        instances = read_json(file).get("instances")
        for name, found in instances.items() if isinstance(instances, dict) else ():
            if not isinstance(found, dict) or not all(
                finite(found.get(k)) is not None for k in ("n", "right", "grid")
            ):
                continue
            n, right, grid, listed = (
                int(found["n"]),
                int(found["right"]),
                int(found["grid"]),
                found.get("puzzles"),
            )
            yield PuzzleResult(
                run=number, instance=str(name), stage=file.parent.parent.name, n=n, right=right, grid=grid,
                chance=finite(found.get("chance")) or 0.0,
                puzzles=[p for p in listed if _is_sound(p, grid)] if isinstance(listed, list) else [],
            )  # fmt: skip


def shown_puzzles(results: Sequence[PuzzleResult]) -> list[ShownPuzzles]:
    """Returns for each plugin instance the puzzles of the first run that has it."""
    found: dict[str, ShownPuzzles] = {}
    for result in results:
        if result.instance in found or not result.puzzles:
            continue
        most, chosen = IMAGES if result.grid else SENTENCES
        rows, seen = [], set()
        for puzzle in result.puzzles:  # one of each image
            image = next(iter(puzzle["images"]), puzzle.get("id"))
            if image not in seen:
                seen.add(image)
                rows.append(puzzle)
        first = rows[: most - chosen]
        wrong = [puzzle for puzzle in rows[len(first) :] if not puzzle["right"]][:chosen]
        cards = [puzzle | {"words": _words(puzzle)} for puzzle in first + wrong]
        found[result.instance] = ShownPuzzles(result=result, cards=cards, first=len(first), wrong=len(wrong))
    return list(found.values())


def _words(puzzle: dict[str, Any]) -> list[tuple[str, bool]]:
    """Returns each word of the predicted order, and whether it is the one of its place."""
    gold = puzzle["gold"]
    return [(str(word), i < len(gold) and gold[i] == word) for i, word in enumerate(puzzle["predicted"])]


def _is_sound(puzzle: Any, grid: int) -> bool:
    if not isinstance(puzzle, dict) or not isinstance(puzzle.get("right"), bool):
        return False
    lists = [puzzle.get(key) for key in ("shuffled", "predicted", "gold", "images")]
    if not all(isinstance(each, list) for each in lists) or not all(
        isinstance(i, str) for i in puzzle["images"]
    ):
        return False
    if not grid:
        return True
    orders = [puzzle[key] for key in ("shuffled", "predicted", "gold")]
    return all(
        len(order) == grid**2 and set(map(str, order)) <= {str(i) for i in range(grid**2)} for order in orders
    )
