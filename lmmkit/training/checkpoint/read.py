"""Checkpoints as they lie in a run's folder, and reading them; `store.py` writes.

    RUN/checkpoints/.tmp-00000500-<id>/   ->   RUN/checkpoints/step-00000500/
        shard-00000.safetensors ...      tensors by name, unique (ties are the model's to make);
                                         of several ranks shard-rank00001-00000 ..., the rows each holds
        rng-rank00000.safetensors ...    generator states, a file a rank
        state.json                       whatever else the trainer needs to go on
        manifest.json                    LAST: size and crc32 of the others

A process killed anywhere leaves the checkpoints that were complete before: readers look only at
`step-XXXXXXXX` folders whose manifest verifies. `sweep` clears the rest at the next start.
Nothing is pickled. Ranks write their files side by side; the first lists and publishes them.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lmmkit.errors import Problem, UserError
from lmmkit.errors.training import DAMAGED
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import manifest
from lmmkit.training.checkpoint.tensor_files import SavedTensors
from lmmkit.training.distributed.process_group import ALONE, Ranks

STEP = re.compile(r"step-(\d{8})", re.ASCII)
RNG = "rng-rank{:05d}.safetensors"
STATE = "state.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given; tensors come to the CPU as they are asked for. `rng` is empty where as many
    ranks as this one's did not save."""

    tensors: SavedTensors
    state: dict[str, Any]
    rng: dict[str, Tensor]
    step: int


class Newest(NamedTuple):
    """The newest sound checkpoint, and what is wrong with each newer one."""

    path: Path | None
    notices: tuple[Problem, ...]


def latest(run: RunFolder, ranks: Ranks = ALONE) -> Path | None:
    """The newest sound checkpoint, None before the first; a passed-over one is logged.

    Raises `UserError` if there are checkpoints and all are damaged.
    """
    path, notices = newest(run, ranks)
    for notice in notices if ranks.first else ():
        _log.warning("damaged checkpoint passed over: %s", notice)
    return path


def newest(run: RunFolder, ranks: Ranks = ALONE) -> Newest:
    """Like `latest`, with the notices for the caller to show. Reads whole files to verify them, each on
    one rank, and all ranks agree."""
    notices: list[Problem] = []
    for name in ranks.broadcast([path.name for path in steps(run)]):
        path = run.checkpoints / name
        own = manifest.verify(path, share=(ranks.rank, ranks.world))
        told = ranks.gather([asdict(problem) for problem in own])
        problems = dict.fromkeys(Problem(**problem) for found in told for problem in found)
        if not problems:
            return Newest(path, tuple(notices))
        notices += problems
    # Starting at step 0 again would be the silent loss of the whole run.
    if notices:
        raise UserError(notices)
    return Newest(None, ())


class Verdict(NamedTuple):
    """A checkpoint as it lies there; `read`: whether its bytes were, or names and sizes alone."""

    step: int
    files: int
    bytes: int
    read: bool
    problems: tuple[Problem, ...]

    @property
    def sound(self) -> bool:
        return not self.problems


def verdicts(run: RunFolder, *, every: bool) -> list[Verdict]:
    """Of all checkpoints, newest first. Without `every`, whole files are read up to the first that is
    sound, which is what a resume goes on from."""
    found: list[Verdict] = []
    for path in steps(run):
        read = every or not any(v.sound for v in found)
        sizes = [file.stat().st_size for file in path.iterdir() if file.is_file()]
        problems = manifest.verify(path, contents=read)
        found.append(Verdict(step_of(path), len(sizes), sum(sizes), read, problems))
    return found


def load(path: Path, *, verified: bool = False, ranks: Ranks = ALONE) -> Checkpoint:
    """The checkpoint in a folder, verified before any tensor is used.

    Pass `verified` for a path that `latest` has just given, to read the files once. Raises
    `UserError` if it is damaged.
    """
    problems = () if verified else manifest.verify(path)
    if problems:
        raise UserError(problems)
    step = step_of(path)
    try:
        body = manifest.read(path)
        tensors = SavedTensors(path, body)
        as_many = (
            RNG.format(ranks.world - 1) in body["files"] and RNG.format(ranks.world) not in body["files"]
        )
        rng = load_file(path / RNG.format(ranks.rank)) if as_many else {}
        if as_many and not rng:
            raise ValueError("no state for a random generator")
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise UserError(DAMAGED.at(str(path), got=str(error))) from None
    return Checkpoint(tensors, state, rng, step)


def step_of(path: Path) -> int:
    """The step in a checkpoint's folder name."""
    match = STEP.fullmatch(path.name)
    if match is None:
        raise ValueError(f"got folder `{path.name}`; want step-XXXXXXXX")
    return int(match[1])


def steps(run: RunFolder) -> list[Path]:
    """Folders named like a checkpoint, newest first."""
    found = run.checkpoints.glob("step-*")
    return sorted((p for p in found if STEP.fullmatch(p.name) and p.is_dir()), reverse=True)
