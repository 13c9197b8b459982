"""The run folder: the name of every file in it, and how each is read.

    RUN/  recipe.yaml  recipe.resolved.yaml  plan.txt  run.json  lock  metrics.jsonl
          anomalies.jsonl  bad_records.jsonl  resumes.jsonl  tb/  checkpoints/step-XXXXXXXX/
          checkpoints/frozen-XXXXXXXX-<id>/  model/<stage>/  model/<stage>-best/  results.json

`run.json` is what makes a folder a run. A start that died before writing it (only the lock, the
recipe and the plan stand there) counts as not begun: both a new run and `--resume` may take it.
A trainer calls, in this order: `RunFolder.create`, `lock` (`runlock.py`), and only then writes anything.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmkit.errors import MachineError, UserError, raise_all
from lmmkit.errors.training import LINK, NO_FOLDER, NOT_A_RUN, NOT_EMPTY, RUN_EXISTS, RUN_UNREADABLE
from lmmkit.runs.files import read_json, read_jsonl, unwritable

# What a start writes before `run.json`.
OPENING = frozenset({"lock", "recipe.yaml", "recipe.resolved.yaml", "plan.txt"})


@dataclass(frozen=True)
class RunFolder:
    """Names only: making one touches no disk. `open` and `create` look at the folder."""

    path: Path

    def __post_init__(self):
        object.__setattr__(self, "path", Path(self.path))

    @property
    def recipe(self) -> Path:
        """The recipe as the user wrote it."""
        return self.path / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        """The recipe with every default and override in it."""
        return self.path / "recipe.resolved.yaml"

    @property
    def plan(self) -> Path:
        """What `lmmkit plugins explain` prints."""
        return self.path / "plan.txt"

    @property
    def run_json(self) -> Path:
        """Versions, hashes, machine; its presence makes the folder a run."""
        return self.path / "run.json"

    @property
    def lock(self) -> Path:
        """Held by the process that trains; see `lock`."""
        return self.path / "lock"

    @property
    def metrics(self) -> Path:
        """One JSON object an optimizer step, and one a validation."""
        return self.path / "metrics.jsonl"

    @property
    def anomalies(self) -> Path:
        """One JSON object for every step that was not finite, or whose loss or gradient leapt."""
        return self.path / "anomalies.jsonl"

    @property
    def resumes(self) -> Path:
        """One JSON object for every time the run went on, with what had changed."""
        return self.path / "resumes.jsonl"

    @property
    def bad_records(self) -> Path:
        """Rows that were passed over, one JSON object a line."""
        return self.path / "bad_records.jsonl"

    @property
    def tb(self) -> Path:
        """TensorBoard event files."""
        return self.path / "tb"

    @property
    def checkpoints(self) -> Path:
        """Holds `step-XXXXXXXX` folders and the frozen weights they list; pruned during training."""
        return self.path / "checkpoints"

    @property
    def results(self) -> Path:
        """Scores of the evaluation tasks, for scripts."""
        return self.path / "results.json"

    def model(self, stage: str) -> Path:
        """The model as `stage` left it; never pruned."""
        return self.path / "model" / stage

    def best(self, stage: str) -> Path:
        """The best model of `stage` so far, by what its `validate` names."""
        return self.path / "model" / f"{stage}-best"

    @property
    def is_run(self) -> bool:
        """Whether a run has begun in this folder."""
        return self.run_json.is_file()

    @classmethod
    def open(cls, path: str | os.PathLike) -> RunFolder:
        """The run at `path`, to be read. Raises `UserError` where there is none."""
        run = cls(Path(path))
        run.require()
        run.require_plain()
        return run

    @classmethod
    def create(cls, path: str | os.PathLike, resume: bool) -> RunFolder:
        """The folder to train in, made if need be; writes nothing into it.

        Raises `UserError` if a new run would land on files that are there, or if there is nothing
        to resume; `MachineError` if the folder cannot be made.
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
        """Removes what writers left that were killed; only under the run's lock."""
        for path in self.path.glob(".*.tmp"):
            with suppress(OSError):
                path.unlink()

    @property
    def root(self) -> str:
        """Where the relative paths of the run's recipe started. Raises `UserError`."""
        root = read_json(self.run_json).get("root")
        if not isinstance(root, str) or "\0" in root:
            fix = "Restore the file, or name the folder: `--root DIR`."
            raise UserError(
                RUN_UNREADABLE.at(f"{self.run_json}: root", got=f"{root!r:.80}", content="a folder", fix=fix)
            )
        return root

    def require_plain(self) -> None:
        """Raises `UserError` for links, pipes and devices in the folder: a run of others must not lead
        what is written out of it."""
        for pattern in ("*", "checkpoints/*", "model/*"):
            raise_all(
                LINK.at(str(path), got="a link" if path.is_symlink() else "a pipe or a device")
                for path in sorted(self.path.glob(pattern))
                if path.is_symlink() or not (path.is_file() or path.is_dir())
            )

    def require(self) -> None:
        """Raises `UserError` unless this folder is a run."""
        if self.is_run:
            return
        got = "no such folder" if not self.path.exists() else "no `run.json` in it"
        raise UserError(NOT_A_RUN.at(str(self.path), got=got))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All steps logged so far; a torn last line is left out. Raises `UserError`."""
        self.require()
        return read_jsonl(self.metrics)

    def read_results(self) -> dict[str, Any]:
        """Scores of the evaluation tasks. Raises `UserError` where there are none yet."""
        self.require()
        return read_json(self.results, hint="Create it with `lmmkit eval`.")


def _entries(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(NO_FOLDER.at(str(path), got=error.strerror or str(error))) from None


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(unwritable(path, error)) from error


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")
