"""lmmkit train RECIPE: trains, or continues a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmmkit.commands.support.common import (
    STARTING,
    RecipePath,
    Root,
    Set,
    Trust,
    out,
    print_text,
    reporting,
    the_recipe,
)
from lmmkit.progress import working

if TYPE_CHECKING:
    from lmmkit.recipe import Recipe


@reporting
def train(
    recipe: RecipePath,
    to: Annotated[Path | None, typer.Option("--out", help="The run folder. \\[default: runs/RECIPE]")] = None,
    root: Root = None,
    changes: Set = None,
    stage: Annotated[
        str | None, typer.Option(help="Train this stage alone, from the model of the stage before.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint in the run folder.")
    ] = False,
    accept_data: Annotated[
        bool,
        typer.Option("--accept-data-change", help="With --resume: continue although the data has changed."),
    ] = False,
    trust_files: Trust = False,
) -> None:
    """Train a recipe's stages and write a run folder."""
    from lmmkit.training.distributed.process_group import joined

    with joined() as ranks:
        read = the_recipe(recipe, root, changes)
        with working(STARTING):
            from lmmkit.data.views import dropped_text
            from lmmkit.recipe.shipped import find_recipe
            from lmmkit.report.train_summary import cost, learned
            from lmmkit.training.run import train as run_training
            from lmmkit.training.signals import exit_code

        to = to or Path("runs") / recipe.stem
        finished = run_training(
            read, out=to, resume=resume, stage=stage, trust_files=trust_files, source=find_recipe(recipe).read_text(),
            accept_data=accept_data,
        )  # fmt: skip
        cut = f"   {dropped_text(finished.dropped)}" if finished.dropped else ""
        if finished.signal is not None:
            state = "saved" if finished.begun else "before the first step"
            option = " and --resume" if finished.run.is_run else ""
            message = f"stopped by a signal; {state}. Continue with the same command{option} ({to}){cut}"
        else:
            message = f"next: {_following(read, to, stage, trust_files)}"
        if ranks.first and finished.signal is None:
            print_text(f"done: {learned(finished.run)}")
            print_text(f"cost: {cost(finished.run)}{cut}")
        if ranks.first:
            out.print(message)
    if finished.signal is not None:
        raise typer.Exit(exit_code(finished.signal))


def _following(recipe: Recipe, run: Path, stage: str | None, trust_files: bool) -> str:
    """Returns what to do after a training: the next stage, if one was trained alone; else the evaluation, or a chat."""
    after = list(recipe.stages)[list(recipe.stages).index(stage) + 1 :] if stage is not None else []
    if after:
        return f"the same command, but with `--stage {after[0]} --resume`"
    command = "eval" if recipe.evaluate and recipe.evaluate.tasks else "chat"
    return f"lmmkit {command} {shlex.quote(str(run))}{' --trust-files' * trust_files}"
