"""lmmkit check RECIPE: finds the problems of a run, and estimates its cost, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from lmmkit.commands.support.common import (
    STARTING,
    Json,
    RecipePath,
    Root,
    Set,
    Trust,
    out,
    print_json,
    print_table,
    print_text,
    reporting,
    the_recipe,
)
from lmmkit.progress import counted, plural, working

TFLOPS = 400.0  # 40 % of an H100's 989 in bfloat16, an assumption


@reporting
def check(
    recipe: RecipePath,
    root: Root = None,
    changes: Set = None,
    images: Annotated[bool, typer.Option("--images", help="Also read the header of every image.")] = False,
    tflops: Annotated[
        float, typer.Option(min=1.0, help="What a device computes, 10^12 operations a second; for the hours.")
    ] = TFLOPS,
    trust_files: Trust = False,
    as_json: Json = False,
) -> None:
    """Check plan, data, images and tasks; estimate steps, tokens, memory and hours."""
    read = the_recipe(recipe, root, changes)
    with working(STARTING):
        from lmmkit import build
        from lmmkit.cost_estimate import estimate
        from lmmkit.data.sources.records import check_images, too_many
        from lmmkit.data.views import dropped_text
        from lmmkit.errors import Tried, raise_all, raise_together
        from lmmkit.plan.dry_run.run import plugin_problems
        from lmmkit.plan.explain import plan_text
        from lmmkit.plan.notices import notices
        from lmmkit.training.preflight import preflight, start_problems

    checked = Tried(lambda: preflight(read, trust_files=trust_files, data=read.data))
    raise_together((checked, Tried(lambda: raise_all(start_problems(read)))))
    prepared, device = checked.value
    with working("trying the plugins"):
        raise_all(plugin_problems(prepared))
    if images:
        raise_all(
            p
            for records in prepared.sources.values()
            for p in too_many(records, check_images(records, spec=prepared.dims.image))
        )
    stages = {
        stage: estimate(prepared, stage, flops=1e12 * tflops)
        for stage in counted("estimating the cost", read.stages)
    }
    if as_json:
        return print_json(
            {
                "stages": stages,
                "records": {name: len(r) for name, r in prepared.sources.items()},
                "notices": notices(prepared),
            }
        )
    print_text(plan_text(prepared).rstrip())
    print_table(_table(stages))
    print_table(_memory(stages, tflops))
    for stage, e in stages.items():
        if e["dropped"]:
            cost = dropped_text(e["dropped"])
            print_text(f"note: stage {stage}: of the first {plural(e['records'], 'record')}: {cost}")
    if narrow := build.frozen_narrow(read):
        print_text(f"frozen in bfloat16: {', '.join(narrow)}")
    print_text(f"attention on this {device.type}: {build.attention_text(prepared.recipe, device)}")
    for name, records in prepared.sources.items():
        skipped = f", {plural(records.left_out, 'bad record')} left out" if records.left_out else ""
        out.print(f"data {name}: {plural(len(records), 'record')}{skipped}")
    for line in notices(prepared):
        print_text(f"note: {line}")
    if not images and any(records.indexed.index.meta["images"] for records in prepared.sources.values()):
        print_text(
            "note: of the images, those of the first steps were read; --images reads the header of each"
        )
    out.print("no problems.")


def _table(stages: dict[str, dict]) -> Table:
    """Returns the table of steps, tokens and parameters."""
    table = Table(title="steps and parameters (token figures from the first steps)", title_justify="left")
    headings = (
        "stage",
        "steps",
        "tokens\na step",
        "micro-\nbatches",
        "super-\nvised",
        "million\ntrainable",
    )
    _columns(table, headings)
    for stage, e in stages.items():
        table.add_row(
            stage, f"{e['steps']:,}", f"{e['tokens_per_step']:,.0f}", f"{e['micro_batches']:.1f}",
            f"{100 * e['supervised']:.1f} %", f"{_millions(e['trainable'])} / {_millions(e['parameters'])}",
        )  # fmt: skip
    return table


def _memory(stages: dict[str, dict], tflops: float) -> Table:
    """Returns the table of the memory of one device, and the hours."""
    devices = next(iter(stages.values()))["devices"]
    table = Table(
        title=f"GiB on {'the one device' if devices == 1 else f'one of {devices} devices'}", title_justify="left",
        caption="Activations: of the fullest micro-batch, on a device that computes in\n"
        "`numerics.compute`. Leave a tenth for kernels and the allocator. Hours: the\n"
        f"decoder's matrices and all gradients at {devices} x {tflops:g} TFLOP/s (--tflops).\nSee docs/recipes.md.",
        caption_justify="left",
    )  # fmt: skip
    sorts = ["weights", "gradients", "optimizer", "activations", "all"]
    for sort in ("teachers", "reference"):
        if any(sort in e["bytes"] for e in stages.values()):
            sorts.insert(1, sort)
    headings = {"activations": "activa-\ntions", "reference": "refer-\nence"}
    _columns(table, ("stage", *(headings.get(sort, sort) for sort in sorts), "hours"))
    for stage, e in stages.items():
        table.add_row(
            stage, *(f"{e['bytes'].get(sort, 0) / 2**30:,.2f}" for sort in sorts), f"{e['hours']:,.2f}"
        )
    return table


def _columns(table: Table, headings: Sequence[str]) -> None:
    for column in headings:
        table.add_column(column, justify="left" if column == "stage" else "right")


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f}" if count < 1e8 else f"{count / 1e6:,.0f}"
