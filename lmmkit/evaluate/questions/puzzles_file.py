"""`puzzles.json`: what the order tasks of a stage shuffled, and the order that the model gives it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lmmkit import plugin_calls
from lmmkit.api.components import AuxTask, Term
from lmmkit.api.puzzle import Puzzle
from lmmkit.api.sample import Sample
from lmmkit.data.image_files.image_file import image_place
from lmmkit.evaluate.keep import Keep
from lmmkit.objective import Outcome
from lmmkit.runs.files import write_text_atomic

PUZZLES, FORMAT = "puzzles.json", 1
MOST = 1000  # puzzles of an instance in the file; `n` and `right` count all of them


class Puzzles:
    """Collects the puzzles of an evaluation task by plugin instance, in the order of its samples."""

    def __init__(self, task: str, samples: Iterable[Sample]):
        self.task = task
        self._images = {sample.key: [image_place(image) for image in sample.images] for sample in samples}
        self._found: dict[str, list[tuple[str, Puzzle]]] = {}

    def add(self, instance: str, key: str, puzzle: Puzzle) -> None:
        """Adds the puzzle that a plugin instance made of the sample with this key."""
        self._found.setdefault(instance, []).append((key, puzzle))

    def add_outcome(self, terms: Sequence[Term], outcome: Outcome) -> None:
        """Adds the puzzles of a micro-batch."""
        for term in terms:
            if isinstance(term, AuxTask) and (puzzles := plugin_calls.puzzles(term, outcome.ctxs[term.name])):
                batch = outcome.ctxs[term.name].batch
                for view, puzzle in zip(batch.views_of(term.name), puzzles, strict=True):
                    self.add(term.name, batch.views[view][1], puzzle)

    def write(self, keep: Keep, stage: str) -> None:
        """Writes `puzzles.json` into the task's folder, one puzzle a line; nothing without puzzles."""
        if not self._found or keep.ranks.rank:
            return
        head = {"format": FORMAT, "task": self.task, "stage": stage, "model": keep.model["checkpoint"]}
        instances = ",\n".join(f"{json.dumps(name)}: {self._instance(name)}" for name in self._found)
        keep.folder.mkdir(parents=True, exist_ok=True)
        write_text_atomic(
            keep.folder / PUZZLES, f'{json.dumps(head)[:-1]}, "instances": {{\n{instances}\n}}}}\n'
        )

    def _instance(self, name: str) -> str:
        puzzles = [puzzle for _, puzzle in self._found[name]]
        n = len(puzzles)
        head = {
            "n": n, "right": sum(puzzle.right for puzzle in puzzles), "chance": sum(p.chance for p in puzzles) / n,
            "grid": puzzles[0].grid,
        }  # fmt: skip
        lines = ",\n".join(json.dumps(self._line(*each)) for each in self._found[name][:MOST])
        return f'{json.dumps(head)[:-1]}, "puzzles": [\n{lines}\n]}}'

    def _line(self, key: str, puzzle: Puzzle) -> dict[str, Any]:
        return {
            "id": key, "images": self._images[key], "shuffled": puzzle.shuffled, "predicted": puzzle.predicted,
            "gold": puzzle.gold, "right": puzzle.right, "chance": puzzle.chance, "p_predicted": puzzle.p_predicted,
            "p_gold": puzzle.p_gold,
        }  # fmt: skip


def puzzle_facts(folder: Path) -> dict[str, Any]:
    """Returns the name of the file of puzzles in a task's folder, if it is there."""
    return {"puzzles": PUZZLES} if (folder / PUZZLES).is_file() else {}
