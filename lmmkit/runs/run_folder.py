"""The run folder: the name of every file in it, and functions that read them.

    RUN/  recipe.yaml  recipe.resolved.yaml  plan.txt  run.json  lock  metrics.jsonl
          anomalies.jsonl  bad_records.jsonl  resumes.jsonl  tb/  checkpoints/step-XXXXXXXX/
          checkpoints/frozen-XXXXXXXX-<id>/  model/<stage>/  model/<stage>-best/  results.json
          answers/<stage>/<task>/

A folder with `run.json` is a run. If a start died before writing it (only the lock, the recipe and
the plan are there), the run has not begun: both a new run and `--resume` may use the folder.
A trainer calls `RunFolder.create`, then `lock` (`run_lock.py`), and only then writes files.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmkit.errors import SHOWN, MachineError, UserError, raise_all
from lmmkit.errors.training import NOT_A_FOLDER, NOT_A_RUN, NOT_EMPTY, RUN_DAMAGED, RUN_EXISTS, RUN_LINK
from lmmkit.runs.files import read_json, read_jsonl, unwritable

# The files that a start writes before `run.json`.
OPENING = frozenset({"lock", "recipe.yaml", "recipe.resolved.yaml", "plan.txt"})


@dataclass(frozen=True)
class RunFolder:
    """Names the files of a run. The constructor does not read the disk; `open` and `create` do."""

    path: Path

    def __post_init__(self):
        object.__setattr__(self, "path", Path(self.path))

    @property
    def recipe(self) -> Path:
        """Returns the path of the recipe as the user wrote it."""
        return self.path / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        """Returns the path of the recipe with all defaults and overrides."""
        return self.path / "recipe.resolved.yaml"

    @property
    def plan(self) -> Path:
        """Returns the path of the output of `lmmkit plugins explain`."""
        return self.path / "plan.txt"

    @property
    def run_json(self) -> Path:
        """Returns the path of `run.json`: versions, hashes, machine. Its presence makes the folder a run."""
        return self.path / "run.json"

    @property
    def lock(self) -> Path:
        """Returns the path of the lock file, which the training process locks; see `lock`."""
        return self.path / "lock"

    @property
    def metrics(self) -> Path:
        """Returns the path of the metrics: one JSON object for each optimizer step and each validation."""
        return self.path / "metrics.jsonl"

    @property
    def anomalies(self) -> Path:
        """Returns the path of the anomalies: one JSON object for each step that was not finite, or whose
        loss or gradient had a spike."""
        return self.path / "anomalies.jsonl"

    @property
    def resumes(self) -> Path:
        """Returns the path of the list of resumes: one JSON object for each, with what had changed."""
        return self.path / "resumes.jsonl"

    @property
    def bad_records(self) -> Path:
        """Returns the path of the list of skipped records, one JSON object a line."""
        return self.path / "bad_records.jsonl"

    @property
    def tb(self) -> Path:
        """Returns the folder of the TensorBoard event files."""
        return self.path / "tb"

    @property
    def checkpoints(self) -> Path:
        """Returns the folder of the `step-XXXXXXXX` folders and the frozen weights that they list. Training
        prunes it."""
        return self.path / "checkpoints"

    @property
    def results(self) -> Path:
        """Returns the path of the scores of the evaluation tasks, for scripts."""
        return self.path / "results.json"

    def model(self, stage: str) -> Path:
        """Returns the folder of the model at the end of `stage`; never pruned."""
        return self.path / "model" / stage

    def best(self, stage: str) -> Path:
        """Returns the folder of the best model of `stage` so far, by the metric that its `validate` names."""
        return self.path / "model" / f"{stage}-best"

    @property
    def is_run(self) -> bool:
        """Returns whether a run has begun in this folder."""
        return self.run_json.is_file()

    @classmethod
    def open(cls, path: str | os.PathLike) -> RunFolder:
        """Opens the run at `path` for reading. Raises `UserError` if there is none."""
        run = cls(Path(path))
        run.require()
        run.require_plain()
        return run

    @classmethod
    def create(cls, path: str | os.PathLike, resume: bool) -> RunFolder:
        """Returns the folder to train in, and makes it if it is missing. Writes nothing into it.

        Raises `UserError` if a new run would use a folder with other files, or if there is nothing to
        resume; `MachineError` if the folder cannot be made.
        """
        run = cls(Path(path))
        entries = _entries(run.path)
        unbegun = "lock" in entries and all(name in OPENING or _is_temporary(name) for name in entries)
        run.require_plain()
        if resume:
            if not unbegun:
                run.require()
        elif run.is_run:
            raise UserError(RUN_EXISTS.at(str(run.path), got="a folder with a run"))
        elif entries and not unbegun:
            some = ", ".join(f"`{name}`" for name in sorted(entries)[:3])
            raise UserError(
                NOT_EMPTY.at(str(run.path), got=f"a folder with {len(entries)} other files ({some})")
            )
        _make(run.path)
        return run

    def clear_temporary(self) -> None:
        """Removes temporary files of killed writers. Call it only while holding the run's lock."""
        for path in self.path.glob(".*.tmp"):
            with suppress(OSError):
                path.unlink()

    def answers(self, stage: str, task: str) -> Path:
        """Returns the folder of the answers that the model of a stage gave to a task."""
        return self.path / "answers" / stage / task

    @property
    def root(self) -> str:
        """Returns the folder that the recipe's paths are relative to. Raises `UserError` if it is bad."""
        root = read_json(self.run_json).get("root")
        if not isinstance(root, str) or "\0" in root:
            fix = "Restore the file, or name the folder: `--root DIR`."
            raise UserError(
                RUN_DAMAGED.at(f"{self.run_json}: root", got=f"{root!r:.80}", content="a folder", fix=fix)
            )
        return root

    def cut(self) -> tuple[tuple[str, ...], int | None]:
        """Returns the terms whose value depends on how a step is cut into micro-batches, and the number of ranks; None
        if `run.json` does not have it."""
        found = read_json(self.run_json)
        lists, ranks = found.get("not_additive"), found.get("ranks")
        lists = lists.values() if isinstance(lists, dict) else ()
        names = {str(name) for each in lists if isinstance(each, list) for name in each}
        return tuple(sorted(names)), ranks if isinstance(ranks, int) else None

    def require_plain(self) -> None:
        """Raises `UserError` for links, pipes and devices in the folder: with a run from somebody else,
        they could redirect writes to other places."""
        for pattern in (
            "*",
            "checkpoints/*",
            "model/*",
            *("answers" + "/*" * depth for depth in (1, 2, 3, 4)),
        ):
            raise_all(
                RUN_LINK.at(str(path), got="a link" if path.is_symlink() else "a pipe or a device")
                for path in sorted(self.path.glob(pattern))
                if path.is_symlink() or not (path.is_file() or path.is_dir())
            )

    def require(self) -> None:
        """Raises `UserError` unless this folder is a run."""
        if self.is_run:
            return
        got = "no such folder" if not self.path.exists() else "no `run.json` in it"
        below = sorted(str(path.parent) for path in self.path.glob("*/run.json"))[:SHOWN]
        named = f"Runs in it: {', '.join(below)}. " if below else ""
        raise UserError(NOT_A_RUN.at(str(self.path), got=got, below=named))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns all steps logged so far, without a torn last line. Raises `UserError` for a bad file."""
        self.require()
        return read_jsonl(self.metrics)

    def read_results(self) -> dict[str, Any]:
        """Returns the scores of the evaluation tasks. Raises `UserError` if there are none yet."""
        self.require()
        return read_json(self.results, hint="Create it with `lmmkit eval`.")


def _entries(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(NOT_A_FOLDER.at(str(path), got=error.strerror or str(error))) from None


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(unwritable(path, error)) from error


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")
