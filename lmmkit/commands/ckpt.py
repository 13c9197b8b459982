"""lmmkit ckpt verify RUN: checks the checkpoints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lmmkit.commands.support.common import STARTING, Json, out, print_json, print_table, reporting
from lmmkit.errors import UserError
from lmmkit.progress import working

app = typer.Typer(no_args_is_help=True, help="Check the checkpoints of a run.")


@app.callback()
def checkpoints() -> None:
    """Check the checkpoints of a run."""


@app.command()
@reporting
def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Read every checkpoint, not only the newest; all must be sound.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read checkpoints, compare them with their manifests, and print what a resume would do.

    Exit code 2 if the newest is damaged; with --all, if any is.
    """
    from lmmkit.runs.run_folder import RunFolder

    folder = RunFolder.open(run)
    with working(STARTING):
        from lmmkit.training.checkpoint.read import CheckpointVerdict, verdicts

    found: list[CheckpointVerdict] = verdicts(folder, every=everything)
    sound = next((v for v in found if v.sound), None)
    if as_json:
        rows = [
            {"step": v.step, "files": v.files, "bytes": v.bytes, "read": v.read, "sound": v.sound,
             "problems": [str(p) for p in v.problems], "frozen": v.frozen, "damaged_copies": v.spoiled}
            for v in found
        ]  # fmt: skip
        print_json({"run": str(run), "checkpoints": rows, "resumes_at": sound.step if sound else None})
    else:
        _print(found, sound)
    if bad := [v for v in (found if everything else found[:1]) if not v.sound]:
        if as_json:
            raise typer.Exit(UserError.exit_code)
        raise UserError([problem for v in bad for problem in v.problems])


def _print(found: list, sound) -> None:
    table = Table()
    for column in ("step", "files", "bytes", "frozen weights", "verdict"):
        table.add_column(column, justify="right" if column in ("step", "files", "bytes") else "left")
    for v in found:
        verdict = "sound" if v.read else "names and sizes match; not read (--all)"
        verdict = verdict if v.sound else f"damaged: {v.problems[0].got}"
        verdict += "".join(f"; {copy}: {got}, the other copy is sound" for copy, got in v.spoiled.items())
        table.add_row(str(v.step), str(v.files), f"{v.bytes:,}", v.frozen or "none", verdict)
    if found:
        print_table(table)
    if sound is not None:
        out.print(f"`lmmkit train ... --resume` continues from step {sound.step}.")
    elif found:
        out.print("`--resume` refuses: every checkpoint is damaged.")
    else:
        out.print("no checkpoint yet: `--resume` begins at step 0.")
