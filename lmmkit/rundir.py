"""The run folder: the name of every file in it, how each is read, and who may write to it.

    RUN/  recipe.yaml  recipe.resolved.yaml  plan.txt  run.json  lock  metrics.jsonl
          anomalies.jsonl  bad_rows.jsonl  resumes.jsonl  tb/  checkpoints/step-XXXXXXXX/
          model/<stage>/  model/<stage>-best/  results.json

`run.json` is what makes a folder a run. A start that died before writing it (only the lock, the
recipe and the plan stand there) counts as not begun: both a new run and `--resume` may take it.
A trainer calls, in this order: `RunDir.create`, `lock`, and only then writes anything.
"""

from __future__ import annotations

import fcntl
import json
import math
import numbers
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmmkit.errors import MachineError, Problem, UserError, raise_all

# What a start writes before `run.json`.
OPENING = frozenset({"lock", "recipe.yaml", "recipe.resolved.yaml", "plan.txt"})


@dataclass(frozen=True)
class RunDir:
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
    def bad_rows(self) -> Path:
        """Rows that were passed over, one JSON object a line."""
        return self.path / "bad_rows.jsonl"

    @property
    def tb(self) -> Path:
        """TensorBoard event files."""
        return self.path / "tb"

    @property
    def checkpoints(self) -> Path:
        """Holds `step-XXXXXXXX` folders; pruned as training goes on."""
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
    def open(cls, path: str | os.PathLike) -> RunDir:
        """The run at `path`, to be read. Raises `UserError` where there is none."""
        run = cls(Path(path))
        run.require()
        run.require_plain()
        return run

    @classmethod
    def create(cls, path: str | os.PathLike, resume: bool) -> RunDir:
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
            raise UserError(
                Problem(
                    "run/exists",
                    str(run.path),
                    "a folder that holds a run",
                    "an empty or a new folder",
                    "Go on with that run (`--resume`), or name another folder (`--out DIR`).",
                )
            )
        elif entries and not unbegun:
            some = ", ".join(f"`{name}`" for name in sorted(entries)[:3])
            raise UserError(
                Problem(
                    "run/not-empty",
                    str(run.path),
                    f"a folder with {len(entries)} other files ({some})",
                    "an empty or a new folder",
                    "Name another folder (`--out DIR`).",
                )
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
            where, mend = f"{self.run_json}: root", "Restore the file, or name the folder: `--root DIR`."
            raise UserError(Problem("run/unreadable", where, f"{root!r:.80}", "a folder", mend))
        return root

    def require_plain(self) -> None:
        """Raises `UserError` for links, pipes and devices in the folder: a run of others must not lead
        what is written out of it."""
        want, mend = "a file or a folder", "Put the file or folder itself there, or remove it."
        for pattern in ("*", "checkpoints/*", "model/*"):
            raise_all(
                Problem(
                    "run/link", str(path), "a link" if path.is_symlink() else "a pipe or a device", want, mend
                )
                for path in sorted(self.path.glob(pattern))
                if path.is_symlink() or not (path.is_file() or path.is_dir())
            )

    def require(self) -> None:
        """Raises `UserError` unless this folder is a run."""
        if self.is_run:
            return
        got = "no such folder" if not self.path.exists() else "no `run.json` in it"
        raise UserError(
            Problem(
                "run/not-a-run",
                str(self.path),
                got,
                "the folder of a run (`lmmkit train --out DIR`)",
                "Check the path; a run is the folder that holds `run.json`.",
            )
        )

    def read_metrics(self) -> list[dict[str, Any]]:
        """All steps logged so far; a torn last line is left out. Raises `UserError`."""
        self.require()
        return read_jsonl(self.metrics)

    def read_results(self) -> dict[str, Any]:
        """Scores of the evaluation tasks. Raises `UserError` where there are none yet."""
        self.require()
        return read_json(self.results, mend="Make it with `lmmkit eval`.")


def read_json(path: Path, *, mend: str = "Restore the file, or run again.") -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError` if it is missing, torn or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(_unreadable(str(path), error.strerror or str(error), mend)) from None
    except (ValueError, RecursionError) as error:
        raise UserError(_unreadable(str(path), f"no JSON ({error})", mend)) from None
    if not isinstance(value, dict):
        raise UserError(_unreadable(str(path), f"a JSON {type(value).__name__}", mend))
    return value


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, one a line; [] without a file.

    A last line that breaks off is what a killed writer leaves, and is skipped. Raises `UserError`
    naming the line for any other that is not an object.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"a {type(record).__name__}")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            mend = "Remove that line, or restore the file."
            raise UserError(_unreadable(f"{path}:{number}", f"no JSON ({error})", mend)) from None
        records.append(record)
    return records


def plain(value: Any) -> Any:
    """`value` as JSON can say it: NaN and infinities become None, numpy numbers Python's.

    Raises `TypeError` for anything else, tensors among it: they would hide a wait for the GPU.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"got a {type(value).__name__}; want numbers, text, lists and mappings")


def write_json_atomic(path: Path, value: Mapping[str, Any]) -> None:
    """Writes `plain(value)` so that a reader sees the old file or the new, never a part."""
    write_text_atomic(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def write_text_atomic(path: Path, text: str) -> None:
    """Temporary file, fsync, rename, fsync of the folder. Raises `MachineError`."""
    # The process id keeps two writers of one file (a run and an evaluation) apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        io_point(f"write {path.name}")
        temporary.write_text(text, encoding="utf-8")
        fsync(temporary)
        io_point(f"publish {path.name}")
        os.replace(temporary, path)
        io_point(f"sync the name of {path.name}")
        fsync(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise MachineError(_unwritable(path, error)) from error


def io_point(name: str) -> None:
    """Called before every change to the disk that a run's files hang on; tests die here."""


def fsync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Lock handles of this process. A forked data worker closes its copies: the lock lives as long as
# any copy does, and an orphaned worker must not keep a killed run's folder taken.
_held: set[int] = set()


def _drop_inherited() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_drop_inherited)


@contextmanager
def lock(run: RunDir) -> Iterator[None]:
    """Owns the run folder until the block ends; the kernel frees it if the process dies.

    Raises `UserError` naming the owner where another process trains there, and `MachineError`
    where the file system knows no locks or the file cannot be made.
    """
    try:
        handle = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise MachineError(_unwritable(run.lock, error)) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(handle, 4096)
        os.close(handle)
        raise UserError(_taken(run, owner)) from None
    except OSError as error:
        os.close(handle)
        raise MachineError(_unwritable(run.lock, error)) from error
    _held.add(handle)
    try:
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(handle, 0)
        os.pwrite(handle, (json.dumps(owner) + "\n").encode(), 0)
        yield
    finally:
        # The file stays: removing it would let two later owners lock two different files. In a
        # forked child the handle is already closed, and the number may be another file's.
        if handle in _held:
            _held.remove(handle)
            os.close(handle)


def _taken(run: RunDir, owner: bytes) -> Problem:
    try:
        who = dict(json.loads(owner))
    except (ValueError, TypeError):  # the owner has the lock but has not signed it yet
        who = {}
    pid, host = who.get("pid", "unknown"), who.get("host", "unknown")
    return Problem(
        "run/locked",
        str(run.lock),
        f"a run that is under way: process {pid} on {host}, since {who.get('started', 'just now')}",
        "one run in a folder at a time",
        f"Wait for it or stop it (`kill {pid}` on {host}), then `--resume`; "
        "or name another folder (`--out DIR`).",
    )


def _entries(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        mend = "Name another folder (`--out DIR`)."
        reason = error.strerror or str(error)
        raise UserError(Problem("run/no-folder", str(path), reason, "a folder", mend)) from None


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(_unwritable(path, error)) from error


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _unreadable(where: str, got: str, mend: str) -> Problem:
    return Problem("run/unreadable", where, got, "a JSON object", mend)


def _unwritable(path: Path, error: OSError) -> Problem:
    return Problem(
        "run/cannot-write",
        str(path),
        error.strerror or str(error),
        "a folder that can be written to, on a file system with locks",
        "Free space or change its rights, or name another folder (`--out DIR`).",
    )
