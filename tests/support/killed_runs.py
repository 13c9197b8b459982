"""Runs that are killed: children of a warm parent, which dies with nothing prepared, and what must hold afterwards."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lmmkit.data import loader
from lmmkit.recipe import Recipe
from lmmkit.runs import files
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import disk_space, manifest, read, write
from lmmkit.training.monitoring import metrics_log
from lmmkit.training.run import train
from lmmkit.training.signals import exit_code
from lmmkit.weights import model_folder

CRASHED = 77
TIMES = ("seconds", "tokens_per_second", "val/seconds")
WITH_POINTS = (files, write, model_folder, metrics_log)
WITH_SYNC = (files, disk_space, write)


def start(recipe: Recipe, out, point: Callable[[str], None] = lambda name: None) -> int:
    """Begins or resumes the run at `out` in a child; returns its pid.

    `point` is called before every change to the disk. Data workers are forked too: an import of torch
    costs them seconds otherwise. Nothing waits for the disk, which only a power cut could tell apart.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(300)
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        torch.set_num_threads(1)
        for module in WITH_POINTS:
            module.io_point = point
        for module in WITH_SYNC:
            module.fsync = os.stat
        opened = loader.StatefulDataLoader
        loader.StatefulDataLoader = lambda *args, multiprocessing_context, **kwargs: opened(
            *args, multiprocessing_context="fork" if kwargs["num_workers"] else None, **kwargs
        )
        signum = train(recipe, out=out, resume=(out / "run.json").exists()).signal
        code = 0 if signum is None else exit_code(signum)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def end(pid: int) -> int:
    """Waits for a child: its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_after(pid: int, seconds: float) -> int:
    """SIGKILL, unless the child has ended before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return end(pid)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return end(pid)


def dies_at(number: int) -> Callable[[str], None]:
    """Returns a point that ends the process at its n-th call, from 1."""
    left = iter(range(number - 1))

    def point(name: str) -> None:
        if next(left, None) is None:
            os._exit(CRASHED)

    return point


def points_of(recipe: Recipe, out) -> list[str]:
    """Returns the names of all points of an undisturbed run, in order."""
    names = out.parent / f"{out.name}.points"

    def note(name: str) -> None:
        with names.open("a") as file:
            file.write(name + "\n")

    assert end(start(recipe, out, note)) == 0
    return names.read_text().splitlines()


def figures(run: RunFolder) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in run.read_metrics()]


@dataclass
class Witness:
    """Looks at a run folder after every death; raises where something is lost or damaged."""

    run: RunFolder
    newest: int = -1
    complete: int = 0

    def look(self) -> None:
        steps = read.steps(self.run)
        found = [manifest.examine(path, every_copy=True) for path in steps]
        assert not [f for f in found if f.problems or f.spoiled], "a corrupt checkpoint"
        assert len(steps) >= min(self.complete, 2), "fewer than two, where two were"
        self.complete = max(self.complete, len(steps))
        path = read.newest(self.run).path
        step = read.step_of(path) if path is not None else -1
        assert step >= self.newest, "the newest checkpoint is gone"
        if path is not None:
            assert read.load(path, spoiled=()).state["position"]["step"] == step
        self.newest = step


def assert_same(run: RunFolder, whole: RunFolder, stages) -> None:
    """Compares every logged bit and every model, and finds no leftovers."""
    assert figures(run) == figures(whole)
    for folder in (f(stage) for stage in stages for f in (whole.model, whole.best)):
        if folder.exists():
            ours = run.path / folder.relative_to(whole.path)
            names = sorted(p.name for p in folder.iterdir())
            assert names == sorted(p.name for p in ours.iterdir())
            weights = [f / "model.safetensors" for f in (ours, folder)]
            assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not list(run.checkpoints.glob(".*")) and not list((run.path / "model").glob(".*"))
    listed = {manifest.examine(path, contents=False).frozen for path in read.steps(run)}
    assert {path.name for path in run.checkpoints.glob("frozen-*")} == listed - {None}
    assert not list(run.path.glob(".*"))
