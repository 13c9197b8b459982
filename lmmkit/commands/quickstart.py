"""lmmkit quickstart: makes data, trains and evaluates both recipes, prints tables and writes a report."""

from __future__ import annotations

import shlex
import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmmkit.commands.support.common import INTERRUPTED, err, out, print_table, refused_file, reporting
from lmmkit.commands.support.jobs import Job, run_all
from lmmkit.commands.support.quickstart_display import QuickstartDisplay
from lmmkit.errors import UserError
from lmmkit.errors.commands import QUICKSTART_NOT_EMPTY, QUICKSTART_OTHER
from lmmkit.progress import working
from lmmkit.runs.files import read_json, write_json_atomic
from lmmkit.runs.metrics import last_step
from lmmkit.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from lmmkit.recipe import Recipe

RECIPES = {"llava": "quickstart-llava", "direct": "quickstart"}
SCENES, FAST_SCENES = (6000, 500), (400, 30)  # for training, held out
FAST = (
    "stages.pretrain.length.steps=6",
    "stages.finetune.length.steps=8",
    "evaluate.tasks.restore.samples=20",
)
STATE = "logs/quickstart.json"


@reporting
def quickstart(
    to: Annotated[
        Path, typer.Option("--out", help="A new or empty folder, or one whose quickstart was stopped.")
    ] = Path("quickstart"),
    fast: Annotated[
        bool, typer.Option("--fast", help="The same commands in less than a minute; without useful accuracy.")
    ] = False,
) -> None:
    """Train LLaVA and Direct-LLaVA, tiny, on drawn scenes; evaluate both; print the table and write a report.

    Needs no network and no GPU. Both recipes train side by side, one CPU thread each. After a stop, the same
    command continues.
    """
    began, work = time.monotonic(), Quickstart(to.resolve(), fast)
    before = work.open()
    display = QuickstartDisplay(err, list(RECIPES))
    try:
        with display.shown():
            for display.phase, jobs in work.phases():
                if jobs:
                    if display.phase == "data":
                        work.clear_scenes()
                    run_all(jobs, display)
    except KeyboardInterrupt:
        work.save(before + time.monotonic() - began)
        err.print(f"stopped. {work.state()} Continue with: {work.command}")
        raise typer.Exit(INTERRUPTED) from None
    work.finish(before + time.monotonic() - began)


@dataclass(frozen=True)
class Quickstart:
    """Names the parts of a quickstart in its folder, and finds out which of them are done."""

    to: Path
    fast: bool

    @property
    def scenes(self) -> Path:
        """Returns the folder of the data."""
        return self.to / "scenes"

    @property
    def command(self) -> str:
        """Returns the command that continues this quickstart."""
        return f"lmmkit quickstart --out {_quoted(self.to)}{' --fast' * self.fast}"

    def open(self) -> float:
        """Makes the folder, or opens that of a stopped quickstart. Returns the seconds that it has taken so far."""
        try:
            files = {path.name for path in self.to.iterdir()} if self.to.exists() else set()
            (self.to / STATE).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refused_file(error, self.to) from error
        if (self.to / STATE).is_file():
            state = read_json(self.to / STATE, hint="Name another folder: `lmmkit quickstart --out DIR`.")
            if state.get("fast") is not self.fast:
                got = f"a quickstart {'with' if state.get('fast') else 'without'} --fast"
                raise UserError(QUICKSTART_OTHER.at(str(self.to), got=got))
            return float(state.get("seconds") or 0.0)
        if files:
            raise UserError(QUICKSTART_NOT_EMPTY.at(str(self.to), got="a folder with files in it"))
        self.save(0.0)
        return 0.0

    def save(self, seconds: float) -> None:
        """Writes what a later call needs: the kind of quickstart, and the seconds so far."""
        write_json_atomic(self.to / STATE, {"fast": self.fast, "seconds": seconds})

    def phases(self) -> list[tuple[str, list[Job]]]:
        """Returns the jobs that are left, by phase.

        The evaluation of a recipe follows its training, next to the other training, so that no core waits.
        """
        trained = {name: self.is_trained(name) for name in RECIPES}
        left = [name for name in RECIPES if trained[name] and not self.is_evaluated(name)]
        return [
            ("data", [] if self.has_data else [self._data()]),
            ("training", [self._training(name) for name in RECIPES if not trained[name]]),
            ("evaluation", [self._evaluation(name) for name in left]),
        ]

    @property
    def has_data(self) -> bool:
        """Returns whether all scenes are written: the page about them is written last."""
        return (self.scenes / "README.md").is_file()

    def clear_scenes(self) -> None:
        """Removes the part of the data that a stopped quickstart left."""
        if self.scenes.exists():
            shutil.rmtree(self.scenes)

    def is_trained(self, name: str) -> bool:
        """Returns whether the model of the last stage is written."""
        last = list(self._recipes[name].stages)[-1]
        return (self.run(name).model(last) / "config.json").is_file()

    def is_evaluated(self, name: str) -> bool:
        """Returns whether the figures of all tasks are written."""
        tasks = self._recipes[name].evaluate
        run = self.run(name)
        return run.results.is_file() and set(run.read_results()) >= set(tasks.tasks if tasks else ())

    def run(self, name: str) -> RunFolder:
        """Returns the run folder of a recipe."""
        return RunFolder(self.to / name)

    def state(self) -> str:
        """Returns in words what is done and what is left."""
        jobs = [job for _, jobs in self.phases() for job in jobs]
        left = [job.name for job in (*jobs, *(job.then for job in jobs if job.then is not None))]
        steps = ", ".join(
            f"{name} at step {self._logged(name):,} of {self._steps(name):,}" for name in RECIPES
        )
        return f"Kept in {self.to}: {'the data' if self.has_data else 'no data'}; {steps}. Left: {', '.join(left)}."

    def finish(self, seconds: float) -> None:
        """Prints the tables and what to do next; then writes the summary."""
        from lmmkit.report.quickstart import REPORT, summarise, tables, write_summary
        from lmmkit.report.write_page import write_page

        summary = summarise(self.to, list(RECIPES), wall_seconds=seconds)
        with working("writing the report"):
            write_page([self.run(name).path for name in RECIPES], self.to / REPORT)
        for table in tables(self.to, summary):
            print_table(table)
        out.print(
            f"{self.to}: report.html, summary.json, one run folder a recipe, logs/. Took {seconds / 60:.1f} minutes."
        )
        image = sorted((self.scenes / "images" / "heldout").iterdir())[0]
        model, asked = _quoted(self.to / "direct"), '--prompt "How many objects are there?"'
        out.print("Next:")
        out.print(
            f"  open {_quoted(self.to / REPORT)} in a browser: both runs on one page, with every question"
        )
        out.print(f"  lmmkit chat {model} --image {_quoted(image)} {asked}")
        out.print(f"  tensorboard --logdir {_quoted(self.to)}")
        out.print(f"  lmmkit plugins trace quickstart --root {_quoted(self.scenes)}")
        write_summary(self.to, summary)

    def _data(self) -> Job:
        count, heldout = FAST_SCENES if self.fast else SCENES
        numbers = ("--count", str(count), "--heldout", str(heldout))
        images = self.scenes / "images"

        def progress() -> float:
            return sum(1 for _ in images.rglob("*.*")) / (count + heldout) if images.is_dir() else 0.0

        return Job("data", ["data", "make-scenes", str(self.scenes), *numbers], self.to / "logs", progress)

    def _training(self, name: str) -> Job:
        folder = self.to / name
        words = [
            "train",
            RECIPES[name],
            "--root",
            str(self.scenes),
            "--out",
            str(folder),
            *_changes(name, self.fast),
        ]
        begun = (folder / "run.json").exists() or (folder / "lock").exists()
        return Job(
            name,
            words + ["--resume"] * begun,
            self.to / "logs",
            lambda: self._logged(name) / self._steps(name),
            then=None if self.is_evaluated(name) else self._evaluation(name),
        )

    def _evaluation(self, name: str) -> Job:
        return Job(f"eval {name}", ["eval", str(self.to / name)], self.to / "logs")

    @cached_property
    def _recipes(self) -> dict[str, Recipe]:
        from lmmkit.recipe import read_recipe

        changes = {name: _changes(name, self.fast)[1::2] for name in RECIPES}
        return {n: read_recipe(file, overrides=changes[n]) for n, file in RECIPES.items()}

    def _steps(self, name: str) -> int:
        return sum(stage.length.steps or 0 for stage in self._recipes[name].stages.values())

    def _logged(self, name: str) -> int:
        """Returns the last step that a training has logged; 0 before the first."""
        return last_step(self.run(name).metrics)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _changes(name: str, fast: bool) -> list[str]:
    fitting = [c for c in FAST if fast and not (name == "llava" and "restore" in c)]
    return [word for change in fitting for word in ("--set", change)]
