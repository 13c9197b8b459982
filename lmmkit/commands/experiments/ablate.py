"""lmmkit ablate GRID: trains a base recipe and its variants over seeds, and compares them in one table."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from lmmkit.commands.support.common import (
    INTERRUPTED,
    STARTING,
    Json,
    Trust,
    err,
    out,
    print_json,
    print_table,
    print_text,
    reporting,
    show,
)
from lmmkit.errors import LmmkitError, UserError
from lmmkit.progress import duration, plural, working

if TYPE_CHECKING:
    from lmmkit.ablation.arms import Arm
    from lmmkit.ablation.grid import GridFile
    from lmmkit.ablation.planned_runs import GridRun
    from lmmkit.ablation.store import Store
    from lmmkit.commands.experiments.job_queue import Failure
    from lmmkit.commands.experiments.planning import Planned
    from lmmkit.commands.support.jobs import Job

OUTCOME, STORE = "ablation.json", "ablations"
BUSY = 1.1  # how much longer a grid takes for other processes, from which on it is printed


@reporting
def ablate(
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="A grid file, or the name of a shipped grid.")],
    root: Annotated[
        list[Path] | None,
        typer.Option("--root", help="A data folder, instead of the grid's. Repeatable."),
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(
            "--runs", metavar="DIR", help="Where runs are kept. \\[default: `ablations` beside the grid]"
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            min=1,
            metavar="N",
            help="Commands side by side. \\[default: one a core, or one on a GPU]",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the runs and what is done; measure and train nothing.")
    ] = False,
    only_forecast: Annotated[
        bool, typer.Option("--forecast", help="Measure, print how long the rest takes, and end.")
    ] = False,
    emit: Annotated[
        Literal["torchrun", "slurm"] | None,
        typer.Option("--emit", help="Print the commands instead of running them."),
    ] = None,
    trust_files: Trust = False,
    as_json: Json = False,
) -> None:
    """Train a base recipe and its variants over seeds; compare them in one table.

    Runs are kept by a key of all that decides their result, so that grids share them, and none is trained twice. The
    same command continues after a stop.
    """
    with working(STARTING):
        from lmmkit.ablation.arms import read_arms
        from lmmkit.ablation.grid import read_grid
        from lmmkit.ablation.store import Store
        from lmmkit.commands.experiments.apart import apart
        from lmmkit.commands.experiments.planning import Options, plan_grid
        from lmmkit.evaluate.answers.compare import libraries

    _require_one({"--dry-run": dry_run, "--forecast": only_forecast, "--emit": bool(emit), "--json": as_json})
    _require_one({"--emit": bool(emit), "--jobs": jobs is not None})
    file = read_grid(grid, roots=root or ())
    arms = read_arms(file)
    libraries("ablate")
    store = Store((runs or _default_store(file.path)).resolve())
    measure = "nothing" if dry_run else "lengths" if emit is not None else "all"
    options = Options(trust_files=trust_files, quiet=as_json)
    if measure != "nothing":
        with store.alone():  # where this cannot be written, nothing is measured in vain
            pass
    try:
        plan = Plan(file, arms, store, apart(plan_grid, file, arms, store, jobs, measure, options))
        if dry_run:
            print_table(plan.table())
        if dry_run or only_forecast:
            print_text(plan.forecast_text())
        elif emit is not None:
            _print_commands(plan, emit, trust_files)
        else:
            return _run_and_compare(plan, trust_files, as_json)
        return _exit_for(plan, {})
    except KeyboardInterrupt as stop:
        err.print("stopped; what the commands have saved is kept. The same command continues.")
        raise typer.Exit(143 if stop.args[:1] == (signal.SIGTERM,) else INTERRUPTED) from None


def _require_one(options: Mapping[str, bool]) -> None:
    """Raises `UserError` for options that exclude each other."""
    from lmmkit.errors.ablation import GRID_OPTIONS

    given = [name for name, value in options.items() if value]
    if len(given) > 1:
        raise UserError(GRID_OPTIONS.at(given[0], got=" and ".join(f"`{name}`" for name in given)))


def _run_and_compare(plan: Plan, trust_files: bool, as_json: bool) -> None:
    """Runs what is left, prints the tables, and names what has failed."""
    err.print(plan.forecast_text())
    failed = _run_all(plan, trust_files)
    _print_outcome(plan, as_json)
    _exit_for(plan, failed)


def _exit_for(plan: Plan, failed: Mapping[str, Failure]) -> None:
    """Names variants that are left out and commands that have failed. Raises `typer.Exit` with the first one's code."""
    for name, error in plan.planned.failed.items():
        err.print(f"left out: {name}: its steps cannot be measured:")
        show(error)
    for name, failure in failed.items():
        err.print(f"failed: {plan.label(name)}: {failure.reason}")
    codes = [error.exit_code for error in plan.planned.failed.values()] + [
        each.code for each in failed.values()
    ]
    if codes:
        raise typer.Exit(codes[0])


def _print_commands(plan: Plan, emit: Literal["torchrun", "slurm"], trust_files: bool) -> None:
    from lmmkit.commands.experiments.emit import command_lines
    from lmmkit.commands.experiments.grid_work import work_of

    for line in command_lines(plan.store, work_of(plan.store, plan.runs, trust_files=trust_files), emit):
        out.print(line)


def _default_store(grid: Path) -> Path:
    """Returns the folder of runs: beside the grid, or for a shipped grid in the current folder."""
    from lmmkit.recipe.shipped import shipped_grids

    return Path(STORE) if grid in shipped_grids().values() else grid.parent / STORE


@dataclass(frozen=True)
class Plan:
    """Holds a grid and what was planned for it."""

    file: GridFile
    arms: Sequence[Arm]
    store: Store
    planned: Planned

    @property
    def runs(self) -> Sequence[GridRun]:
        """Returns the runs."""
        return self.planned.runs

    def forecast_text(self) -> str:
        """Returns in words how long the rest takes."""
        from lmmkit.commands.experiments.grid_work import left_over

        left, lengths = self.planned.forecast, self.planned.unmeasured
        lines = [f"no runs yet, as their lengths are not measured: {', '.join(lengths)}"] if lengths else []
        number = len(left_over(self.store, self.runs))
        some = f"{plural(number, 'command')} {'is' if number == 1 else 'are'}"
        if number and left is not None:
            cpu, idle = duration(left.cpu_seconds), duration(left.idle_seconds)
            side = f"with {left.side} side by side {idle} if nothing else runs"
            if left.load > BUSY:
                side += f", {duration(left.wall_seconds)} if the machine stays as busy as it is"
            lines.append(f"{some} left: about {cpu} of CPU time; {side}")
        elif number or lengths:
            lines.append(f"{some} left; `--forecast` measures how long they take")
        return "\n".join(lines) or "everything is done."

    def table(self) -> Table:
        """Returns the runs: arm, seed, the keys of the stages, and what is done."""
        table = Table(
            title=f"{self.file.name}: {plural(len(self.runs), 'run')} in {self.store.root}",
            title_justify="left",
        )
        for heading in ("arm", "equal", "seed", "stages", "steps", "state"):
            table.add_column(heading, no_wrap=heading == "arm")
        for run in self.runs:
            keys = "\n".join(f"{stage.stage} {stage.key}" for stage in run.stages)
            steps = "\n".join(f"{stage.steps:,}" for stage in run.stages)
            table.add_row(run.arm, run.equal, _seed(run), keys, steps, self._state(run))
        return table

    def _state(self, run: GridRun) -> str:
        if all(map(self.store.is_trained, run.stages)) and not self.store.missing_tasks(run):
            return "done"
        if any(self.store.is_busy(stage.key) for stage in run.stages):
            return "running"
        done = [stage.stage for stage in run.stages if self.store.is_trained(stage)]
        return f"has {', '.join(done)}" if done else "to do"

    def label(self, name: str) -> str:
        """Returns the first run that a command works for, in words, and the command's name."""
        key, kind = name.split()
        run, stage = next((run, stage) for run in self.runs for stage in run.stages if key == stage.key)
        equal = f", equal {run.equal}" if len(self.file.grid.equal) > 1 else ""
        what = f"{stage.stage}, " if kind == "train" else ""
        return f"{run.arm}{equal}, seed {_seed(run)}, {what}{name}"


def _seed(run: GridRun) -> str:
    return f"{run.seed}" + (f", branch {run.branch}" if run.branch else "")


def _run_all(plan: Plan, trust_files: bool) -> dict[str, Failure]:
    """Runs what is left; shows how far it is. Returns what has failed. Raises `KeyboardInterrupt` after a signal, when
    all commands have saved."""
    from lmmkit.commands.experiments.grid_work import work_of
    from lmmkit.commands.experiments.job_queue import run_queue

    left = plan.planned.forecast
    if left is None or not left.items:
        return {}
    seconds = {item.name: item.seconds for item in left.items}
    work = [each for each in work_of(plan.store, plan.runs, trust_files=trust_files) if each.name in seconds]
    with working(f"{plan.file.name}: {plural(len(work), 'command')}", max(1e-9, left.cpu_seconds)) as move:
        on_board: set[str] = set()

        def show_jobs(jobs: Sequence[Job], ended: Collection[str]) -> None:
            if new := {name for name in ended if name not in on_board}:
                on_board.update(new)
                _write_board(plan, new)
            shares = dict.fromkeys(ended, 1.0) | {job.name: job.share() for job in jobs}
            move(sum(share * seconds[name] for name, share in shares.items()))

        return run_queue(work, plan.planned.side, show_jobs, plan.label)


def _write_board(plan: Plan, names: Collection[str]) -> None:
    """Writes the runs that these commands have finished for TensorBoard."""
    from lmmkit.ablation.board import write_hparams
    from lmmkit.ablation.forecast import eval_name
    from lmmkit.ablation.results import read_finished
    from lmmkit.ablation.summary import arm_entries

    with suppress(LmmkitError), plan.store.alone():  # results that are refused are reported at the end
        finished = read_finished(plan.store, [run for run in plan.runs if eval_name(run.key) in names])
        write_hparams(plan.file.name, arm_entries(plan.file, plan.arms, finished))


def _print_outcome(plan: Plan, as_json: bool) -> None:
    """Writes ablation.json of the runs that are finished, and prints the tables."""
    from lmmkit.ablation.board import write_hparams
    from lmmkit.ablation.results import read_finished
    from lmmkit.ablation.summary import summarise_grid
    from lmmkit.ablation.table import grid_tables, remarks
    from lmmkit.runs.files import write_json_atomic

    summary = summarise_grid(plan.file, plan.arms, read_finished(plan.store, plan.runs))
    folder = plan.store.grid(plan.file.name)
    folder.mkdir(parents=True, exist_ok=True)
    with plan.store.alone():
        if (other := plan.store.keep_outcome(folder / OUTCOME, summary)) is not None:
            what = "on other data folders, or of another grid file of this name"
            err.print(f"{other}: the outcome {what}, which is kept under this name")
        write_json_atomic(folder / OUTCOME, summary)
        write_hparams(plan.file.name, summary["arms"])
    if as_json:
        return print_json(summary)
    for table in grid_tables(summary):
        print_table(table)
    for line in remarks(summary):
        print_text(line)
    print_text(f"{folder / OUTCOME}: the same figures for scripts, with the run folders")
    print_text("next:")
    print_text(f"  lmmkit report {_quoted(folder / OUTCOME)} --out {_quoted(plan.file.name + '.html')}")
    print_text(f"  tensorboard --logdir {_quoted(plan.store.root / 'runs')}")
    return None


def _quoted(path: object) -> str:
    return shlex.quote(str(path))
