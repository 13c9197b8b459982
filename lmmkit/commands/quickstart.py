"""lmmkit quickstart: makes data, trains and evaluates both recipes, prints tables; by public commands alone."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from lmmkit.commands.support.common import err, out, reporting
from lmmkit.errors import UserError
from lmmkit.errors.commands import QUICKSTART_NOT_EMPTY

RECIPES = {"llava": "quickstart-llava", "direct": "quickstart"}
FAST_SCENES = ("--count", "400", "--heldout", "60")
FAST = (
    "stages.pretrain.length.steps=12",
    "stages.finetune.length.steps=16",
    "evaluate.tasks.restore.samples=20",
)


@reporting
def quickstart(
    to: Annotated[Path, typer.Option("--out", help="A new or empty folder.")] = Path("quickstart"),
    fast: Annotated[
        bool, typer.Option("--fast", help="The same commands in about a minute; without useful accuracy.")
    ] = False,
) -> None:
    """Train LLaVA and Direct-LLaVA, tiny, on drawn scenes; evaluate both; print the table.

    Needs no network and no GPU. Both recipes train side by side, one CPU thread each.
    """
    from lmmkit.report.quickstart import summarise, tables

    began = time.monotonic()
    to = to.resolve()
    if to.exists() and any(to.iterdir()):
        raise UserError(QUICKSTART_NOT_EMPTY.at(str(to), got="a folder with files in it"))
    scenes = to / "scenes"
    run_all(
        [Job("data", ["data", "make-scenes", str(scenes), *(FAST_SCENES if fast else ())], to / "logs")],
        every=30,
    )
    changes = {name: _changes(name, fast) for name in RECIPES}
    run_all(
        [
            Job(
                name,
                ["train", recipe, "--root", str(scenes), "--out", str(to / name), *changes[name]],
                to / "logs",
            )
            for name, recipe in RECIPES.items()
        ]
    )
    run_all([Job(f"eval {name}", ["eval", str(to / name)], to / "logs") for name in RECIPES])
    summary = summarise(to, list(RECIPES), wall_seconds=time.monotonic() - began)
    for table in tables(to, summary):
        out.print(table)
    out.print(
        f"{to}: summary.json, one run folder a recipe, logs/. Took {summary['wall_seconds'] / 60:.1f} minutes."
    )
    out.print("Next:")
    scene = scenes / "images" / "heldout"
    image = sorted(scene.iterdir())[0]
    out.print(
        f'  lmmkit chat {_quoted(to / "direct")} --image {_quoted(image)} --prompt "How many objects are there?"'
    )
    out.print(f"  tensorboard --logdir {_quoted(to)}")
    out.print(f"  lmmkit plugins trace quickstart --root {_quoted(scenes)}")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _changes(name: str, fast: bool) -> list[str]:
    fitting = [c for c in FAST if fast and not (name == "llava" and "restore" in c)]
    return [word for change in fitting for word in ("--set", change)]


@dataclass
class Job:
    """Describes a lmmkit command that runs in a separate process and prints to logs/<name>.log."""

    name: str
    arguments: list[str]
    logs: Path
    process: subprocess.Popen = field(init=False, repr=False)  # from `start` on

    @property
    def log(self) -> Path:
        """Returns the path of the log file."""
        return self.logs / f"{self.name.replace(' ', '-')}.log"

    def start(self) -> None:
        """Starts the command with one CPU thread."""
        self.logs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "lmmkit", *self.arguments]
        with self.log.open("w") as log:
            log.write(f"$ lmmkit {' '.join(self.arguments)}\n")
            log.flush()
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)

    def last_line(self) -> str:
        """Returns the last line of the log, or nothing."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""


def run_all(jobs: list[Job], *, every: float = 10.0) -> None:
    """Runs the jobs side by side, and prints the last line of each log from time to time.

    Raises:
        typer.Exit: with the exit code of a failed job; its log is printed, and the other jobs are stopped.
    """
    for job in jobs:
        err.print(f"[bold]$ lmmkit {' '.join(job.arguments)}[/]")
        job.start()
    printed = time.monotonic()
    try:
        while any(job.process.poll() is None for job in jobs):
            failed = next((job for job in jobs if job.process.poll()), None)
            if failed is not None:
                break
            time.sleep(0.2)
            if time.monotonic() - printed >= every:
                printed = time.monotonic()
                for job in jobs:
                    if job.process.poll() is None:
                        err.print(f"  {job.name:12} {job.last_line()}", markup=False)
    except BaseException:
        _stop(jobs)
        raise
    for job in jobs:
        if job.process.poll():
            _stop(jobs)
            err.print(f"`lmmkit {' '.join(job.arguments)}` failed ({job.log}):", markup=False)
            err.print(job.log.read_text(errors="replace"), markup=False)
            raise typer.Exit(job.process.returncode)


def _stop(jobs: list[Job]) -> None:
    for job in jobs:
        if job.process.poll() is None:
            job.process.terminate()
    for job in jobs:
        job.process.wait()
