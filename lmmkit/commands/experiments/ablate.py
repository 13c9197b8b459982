"""lmmkit ablate GRID: trains a base recipe and its variants over seeds, and compares them in one table."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
)
from lmmkit.progress import counted, duration, working

if TYPE_CHECKING:
    from lmmkit.ablation.arms import Arm
    from lmmkit.ablation.forecast import Forecast
    from lmmkit.ablation.grid import GridFile
    from lmmkit.ablation.stage_runs import ArmOnData, GridRun
    from lmmkit.ablation.store import Store
    from lmmkit.commands.experiments.job_queue import Failure
    from lmmkit.commands.support.jobs import Job

OUTCOME, STORE = "ablation.json", "ablations"


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
        typer.Option("--jobs", min=1, metavar="N", help="Commands side by side. \\[default: one a core]"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the runs, what is done, and how long the rest takes.")
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
        from lmmkit.commands.experiments.emit import command_lines
        from lmmkit.commands.experiments.grid_work import work_of
        from lmmkit.evaluate.answers.compare import libraries

    file = read_grid(grid, roots=root or ())
    arms = read_arms(file)
    libraries("ablate")
    store = Store((runs or _default_store(file.path)).resolve())
    plan = Plan.of(file, arms, store, side=jobs or cores(), trust_files=trust_files)
    if dry_run:
        print_table(plan.table())
        return print_text(plan.forecast_text())
    if emit is not None:
        for line in command_lines(store, work_of(store, plan.runs, trust_files=trust_files), emit):
            out.print(line)
        return None
    err.print(plan.forecast_text())
    failed = _run_all(plan, trust_files)
    _print_outcome(plan, as_json)
    for name, failure in failed.items():
        err.print(f"failed: {plan.label(name)}: {failure.reason}")
    if failed:
        raise typer.Exit(next(iter(failed.values())).code)
    return None


def _default_store(grid: Path) -> Path:
    """Returns the folder of runs: beside the grid, or for a shipped grid in the current folder."""
    from lmmkit.recipe.shipped import shipped_grids

    return Path(STORE) if grid in shipped_grids().values() else grid.parent / STORE


def cores() -> int:
    """Returns how many commands run at once: one a core, or one on a GPU."""
    import torch

    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Plan:
    """Holds the runs of a grid, and how long what is left takes."""

    file: GridFile
    arms: Sequence[Arm]
    store: Store
    runs: Sequence[GridRun]
    forecast: Forecast

    @classmethod
    def of(cls, file: GridFile, arms: Sequence[Arm], store: Store, *, side: int, trust_files: bool) -> Plan:
        """Opens the data, makes the runs, and measures what is needed for their lengths and for the forecast."""
        from lmmkit.ablation.forecast import Forecast, forecast
        from lmmkit.ablation.stage_runs import grid_runs
        from lmmkit.ablation.trial import equal_steps, step_costs
        from lmmkit.commands.experiments.grid_work import steps_behind
        from lmmkit.commands.experiments.process_trial import process_cost

        load = os.getloadavg()[0]  # before this command adds to it
        grid, on_data = file.grid, _opened(file, arms, trust_files)
        first = on_data[: len(arms)]
        costs = step_costs(store, first) if grid.equal != ("steps",) else {}
        branch = grid.branch
        runs = [
            run
            for equal in grid.equal
            for run in grid_runs(
                on_data, grid.seeds, equal=equal,
                steps={arm.arm.name: equal_steps(equal, first[0], arm, costs) for arm in first},
                branches=branch.times if branch is not None else 1, after=branch.after if branch is not None else None,
            )
        ]  # fmt: skip
        if all(store.is_trained(stage) for run in runs for stage in run.stages) and not any(
            store.missing_tasks(run) for run in runs
        ):
            return cls(file, arms, store, runs, Forecast((), side, 1.0))
        costs = step_costs(store, first)
        process = process_cost(store, first[0], costs, load=load, trust_files=trust_files)
        sizes = {
            each.recipe.root: {name: len(records) for name, records in each.prepared.sources.items()}
            for each in on_data
        }
        behind = steps_behind(store, runs)
        left = forecast(store, runs, costs, process, sizes, behind, side, load=load)
        return cls(file, arms, store, runs, left)

    def forecast_text(self) -> str:
        """Returns in words how long the rest takes."""
        left = self.forecast
        if not left.items:
            return "everything is done."
        cpu, wall = duration(left.cpu_seconds), duration(left.wall_seconds)
        return f"{len(left.items)} commands are left: about {cpu} of CPU time; with {left.side} side by side {wall}"

    def table(self) -> Table:
        """Returns the runs: arm, seed, the keys of the stages, and what is done."""
        table = Table(
            title=f"{self.file.name}: {len(self.runs)} runs in {self.store.root}", title_justify="left"
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
        key = name.split()[0]
        run = next(run for run in self.runs if key in {stage.key for stage in run.stages})
        return f"{run.arm}, seed {_seed(run)}, {name}"


def _seed(run: GridRun) -> str:
    return f"{run.seed}" + (f", branch {run.branch}" if run.branch else "")


def _opened(file: GridFile, arms: Sequence[Arm], trust_files: bool) -> list[ArmOnData]:
    """Opens each arm on each root: all arms of the first root, then of the next. Raises `UserError` with all problems,
    also for variants that a plan shows to train like another one."""
    from lmmkit.ablation.arms import equal_problems
    from lmmkit.ablation.stage_runs import ArmOnData
    from lmmkit.errors import Tried, raise_all, raise_together

    asked = [(arm, Path(root)) for root in file.grid.root for arm in arms]
    tried = [
        Tried(lambda arm=arm, root=root: ArmOnData(arm, root, trust_files=trust_files))
        for arm, root in counted("opening arms and data", asked)
    ]
    raise_together(tried)
    found = [each.value for each in tried]
    keys = {
        (each.arm.name, each.arm.where): each.stage_runs(0, each.steps)[-1].key for each in found[: len(arms)]
    }
    raise_all(replace(problem, where=file.places.where(problem.where)) for problem in equal_problems(keys))
    return found


def _run_all(plan: Plan, trust_files: bool) -> dict[str, Failure]:
    """Runs what is left; shows how far it is. Returns what has failed.

    Raises:
        typer.Exit: after a signal, when all commands have saved.
    """
    from lmmkit.commands.experiments.grid_work import work_of
    from lmmkit.commands.experiments.job_queue import run_queue

    if not plan.forecast.items:
        return {}
    seconds = {item.name: item.seconds for item in plan.forecast.items}
    work = [each for each in work_of(plan.store, plan.runs, trust_files=trust_files) if each.name in seconds]
    shares: dict[str, float] = {}
    with working(f"{plan.file.name}: {len(work)} commands", max(1e-9, plan.forecast.cpu_seconds)) as move:

        def show(jobs: Sequence[Job]) -> None:
            ended = [name for name in shares if name not in {job.name for job in jobs}]
            shares.update(dict.fromkeys(ended, 1.0) | {job.name: job.share() for job in jobs})
            move(sum(share * seconds[name] for name, share in shares.items()))

        try:
            return run_queue(work, plan.forecast.side, show)
        except KeyboardInterrupt as stop:
            err.print("stopped; every command has saved. The same command continues.")
            raise typer.Exit(143 if stop.args[:1] == (signal.SIGTERM,) else INTERRUPTED) from None


def _print_outcome(plan: Plan, as_json: bool) -> None:
    """Writes ablation.json of the runs that are finished, and prints the tables."""
    from lmmkit.ablation.results import read_finished
    from lmmkit.ablation.summary import summarise_grid
    from lmmkit.ablation.table import grid_tables, remarks
    from lmmkit.runs.files import write_json_atomic

    summary = summarise_grid(plan.file, plan.arms, read_finished(plan.store, plan.runs))
    folder = plan.store.grid(plan.file.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / OUTCOME, summary)
    if as_json:
        return print_json(summary)
    for table in grid_tables(summary):
        print_table(table)
    for line in remarks(summary):
        print_text(line)
    print_text(f"{folder / OUTCOME}: the same figures for scripts, with the run folders")
    return None
