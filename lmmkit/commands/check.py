"""lmmkit check RECIPE: all that can fail, before it costs anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from lmmkit.commands.support.common import (
    Json,
    RecipePath,
    Root,
    Set,
    Trust,
    out,
    print_json,
    reporting,
    the_recipe,
)

TFLOPS = 400.0  # 40 % of an H100's 989 in bfloat16, an assumption


@reporting
def check(
    recipe: RecipePath,
    root: Root = None,
    changes: Set = None,
    images: Annotated[bool, typer.Option("--images", help="Also read the header of every picture.")] = False,
    tflops: Annotated[
        float, typer.Option(min=1.0, help="What a device computes, 10^12 operations a second; for the hours.")
    ] = TFLOPS,
    trust_files: Trust = False,
    as_json: Json = False,
) -> None:
    """Check plan, rows, images, supervised share, tasks; estimate memory and tokens."""
    read = the_recipe(recipe, root, changes)
    from lmmkit import build
    from lmmkit.cost_estimate import estimate
    from lmmkit.data.sources.records import check_images, too_many
    from lmmkit.errors import UserError, raise_all
    from lmmkit.evaluate.kinds import task_problems
    from lmmkit.plan.explain import plan_text
    from lmmkit.plan.prepare import prepare
    from lmmkit.training.validation import validate_problems

    try:
        prepared = prepare(read, trust_files=trust_files, data=list(read.data))
    except UserError as error:
        raise UserError([*error.problems, *task_problems(read)]) from error
    raise_all(validate_problems(prepared))
    device = build.device_here()
    build.check_optimizers(read)
    build.check_compiler(read, device)
    build.check_pretrained(prepared.recipe, prepared.dims, prepared.pretrained, device)
    if images:
        raise_all(
            [p for records in prepared.sources.values() for p in too_many(records, check_images(records))]
        )
    stages = {stage: estimate(prepared, stage, flops=1e12 * tflops) for stage in read.stages}
    if as_json:
        return print_json({"stages": stages, "rows": {name: len(r) for name, r in prepared.sources.items()}})
    out.print(plan_text(prepared).rstrip())
    out.print(_table(stages))
    out.print(_memory(stages, tflops))
    if narrow := build.frozen_narrow(read):
        out.print(f"frozen in bfloat16: {', '.join(narrow)}")
    for name, records in prepared.sources.items():
        turns = f", {records.dropped_turns} leading answers left out" if records.dropped_turns else ""
        passed = f", {records.left_out} bad rows left out" if records.left_out else ""
        out.print(f"data {name}: {len(records)} rows{turns}{passed}")
    out.print("no problems.")


def _table(stages: dict[str, dict]) -> Table:
    """Returns the table of steps, tokens and trainable parameters of the stages."""
    table = Table(title="what it will take (token figures from the first steps)", title_justify="left")
    headings = ("stage", "steps", "tokens\na step", "micro-\nbatches", "super-\nvised", "million\nlearning")
    _columns(table, headings)
    for stage, e in stages.items():
        table.add_row(
            stage, f"{e['steps']:,}", f"{e['tokens_per_step']:,.0f}", f"{e['micro_batches']:.1f}",
            f"{100 * e['supervised']:.1f} %", f"{_millions(e['learning'])} / {_millions(e['parameters'])}",
        )  # fmt: skip
    return table


def _memory(stages: dict[str, dict], tflops: float) -> Table:
    """What one device holds, and for how long."""
    devices = next(iter(stages.values()))["devices"]
    table = Table(
        title=f"GiB of one device, of {devices}", title_justify="left",
        caption="Activations: of the fullest micro-batch, on a device that computes in\n"
        "`numerics.compute`. Leave a tenth for kernels and the allocator. Hours: the\n"
        f"decoder's matrices at {devices} x {tflops:g} TFLOP/s (--tflops). See docs/recipes.md.",
        caption_justify="left",
    )  # fmt: skip
    sorts = ("weights", "gradients", "optimizer", "activations", "all")
    _columns(table, ("stage", "weights", "gradients", "optimizer", "activa-\ntions", "all", "hours"))
    for stage, e in stages.items():
        table.add_row(stage, *(f"{e['bytes'][sort] / 2**30:,.2f}" for sort in sorts), f"{e['hours']:,.2f}")
    return table


def _columns(table: Table, headings: Sequence[str]) -> None:
    for column in headings:
        table.add_column(column, justify="left" if column == "stage" else "right")


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f}" if count < 1e8 else f"{count / 1e6:,.0f}"
