"""The files of checkpoints in a run folder, and reading them; `write.py` writes them.

    RUN/checkpoints/.tmp-00000500-<id>/   ->   RUN/checkpoints/step-00000500/
        shard-00000.safetensors ...      tensors by name, each once (the model restores ties);
                                         with several ranks shard-rank00001-00000 ..., each rank's shard
        rng-rank00000.safetensors ...    generator states, one file for each rank
        state.json                       all other state that a resume needs
        manifest.json                    LAST: size and crc32 of the others, and of the frozen weights

Frozen weights are in a separate folder of the stage, next to the checkpoints (`frozen_weights.py`).
A process that is killed at any point leaves the earlier checkpoints intact: readers use only `step-XXXXXXXX`
folders with a valid manifest. `sweep` removes the rest at the next start. Nothing is pickled. Each rank
writes its files; the first rank writes the manifest and renames the folder.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.errors.training import DAMAGED
from lmmkit.progress import counted
from lmmkit.runs.files import file_crc32
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import manifest
from lmmkit.training.checkpoint.tensor_files import SavedTensors
from lmmkit.training.distributed.process_group import ALONE, Ranks

STEP_FOLDER = re.compile(r"step-(\d{8})", re.ASCII)
RNG = "rng-rank{:05d}.safetensors"
STATE = "state.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Holds the checkpoint in a folder; each tensor is read to the CPU on access. `rng` is empty if another
    number of ranks saved it. `frozen` lists the frozen weights for the next checkpoints of the stage, None if there are
    none or a copy is damaged."""

    path: Path
    tensors: SavedTensors
    state: dict[str, Any]
    rng: dict[str, Tensor]
    frozen: manifest.Frozen | None

    @property
    def step(self) -> int:
        """Returns the step of the run at which it was saved."""
        return step_of(self.path)


class Newest(NamedTuple):
    """Holds the newest sound checkpoint, the problems of each newer one, and damaged copies of its frozen
    weights."""

    path: Path | None
    notices: tuple[Problem, ...]
    spoiled: frozenset[str] = frozenset()


def newest(run: RunFolder, ranks: Ranks = ALONE) -> Newest:
    """Returns the newest sound checkpoint, with path None if there is no checkpoint yet. Logs damaged ones.

    Reads all files completely to verify them, each on one rank; all ranks get the same result. Raises
    `UserError` if there are checkpoints and all are damaged.
    """
    notices: list[Problem] = []
    for name in ranks.broadcast([path.name for path in steps(run)]):
        path = run.checkpoints / name
        own = manifest.examine(path, share=(ranks.rank, ranks.world))
        gathered = ranks.gather([[asdict(problem) for problem in own.problems], own.spoiled])
        problems = dict.fromkeys(Problem(**problem) for found, _ in gathered for problem in found)
        spoiled = {copy: got for _, found in gathered for copy, got in found.items()}
        if not problems:
            for notice in notices if ranks.first else ():
                _log.warning("damaged checkpoint passed over: %s", notice)
            for copy, got in spoiled.items() if ranks.first else ():
                _log.warning("damaged copy %s (%s): the other copy is used", run.checkpoints / copy, got)
            return Newest(path, tuple(notices), frozenset(spoiled))
        notices += problems
    # A start from step 0 would lose the run without an error.
    if notices:
        raise UserError(notices)
    return Newest(None, ())


class CheckpointVerdict(NamedTuple):
    """Describes a checkpoint on disk; `read`: whether its bytes were read, or only names and sizes. For
    `problems`, `spoiled` and `frozen` see `manifest.Findings`."""

    step: int
    files: int
    bytes: int
    read: bool
    problems: tuple[Problem, ...]
    spoiled: dict[str, str]
    frozen: str | None

    @property
    def sound(self) -> bool:
        return not self.problems


def verdicts(run: RunFolder, *, every: bool) -> list[CheckpointVerdict]:
    """Returns a verdict for each checkpoint, newest first. Without `every`, contents are read only up to the
    first sound checkpoint, from which a run would resume."""
    found: list[CheckpointVerdict] = []
    crc_of = cache(file_crc32)  # the checkpoints of a stage share their frozen weights
    for path in counted("reading checkpoints", steps(run)):
        read = every or not any(v.sound for v in found)
        sizes = [file.stat().st_size for file in path.iterdir() if file.is_file()]
        findings = manifest.examine(path, contents=read, every_copy=True, crc_of=crc_of)
        found.append(CheckpointVerdict(step_of(path), len(sizes), sum(sizes), read, *findings))
    return found


def load(path: Path, *, spoiled: Collection[str] | None = None, ranks: Ranks = ALONE) -> Checkpoint:
    """Returns the checkpoint in a folder, verified before any tensor is used.

    Pass `spoiled` from the result of `newest` to skip a second verification. Raises `UserError` if the
    checkpoint is damaged.
    """
    if spoiled is None:
        problems, spoiled, _ = manifest.examine(path)
        raise_all(problems)
    try:
        body = manifest.read(path)
        tensors = SavedTensors(path, body, spoiled)
        as_many = (
            RNG.format(ranks.world - 1) in body["files"] and RNG.format(ranks.world) not in body["files"]
        )
        rng = load_file(path / RNG.format(ranks.rank)) if as_many else {}
        if as_many and not rng:
            raise ValueError("no state for a random generator")
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise UserError(DAMAGED.at(str(path), got=str(error))) from None
    return Checkpoint(path, tensors, state, rng, None if spoiled else body.get("frozen"))


def load_newest(run: RunFolder, ranks: Ranks = ALONE) -> Checkpoint | None:
    """Returns the newest sound checkpoint, None if there is no checkpoint yet. Raises like `newest`."""
    path, _, spoiled = newest(run, ranks)
    return load(path, spoiled=spoiled, ranks=ranks) if path is not None else None


def step_of(path: Path) -> int:
    """Returns the step in a checkpoint's folder name. Raises `ValueError` for another name."""
    match = STEP_FOLDER.fullmatch(path.name)
    if match is None:
        raise ValueError(f"got folder `{path.name}`; want step-XXXXXXXX")
    return int(match[1])


def steps(run: RunFolder) -> list[Path]:
    """Returns the folders named like a checkpoint, newest first."""
    found = run.checkpoints.glob("step-*")
    return sorted((p for p in found if STEP_FOLDER.fullmatch(p.name) and p.is_dir()), reverse=True)
