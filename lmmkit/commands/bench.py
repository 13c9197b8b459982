"""lmmkit bench backends | kernels RECIPE: which attention backends run here, and their cost."""

from __future__ import annotations

from dataclasses import asdict
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

app = typer.Typer(no_args_is_help=True, help="Attention backends: which run here, and their cost.")


@app.command()
@reporting
def backends(as_json: Json = False) -> None:
    """List the attention backends and whether each runs on this machine, or why not."""
    with working(STARTING):
        import torch

        from lmmkit.attention_benchmark import reasons
        from lmmkit.build import device_here

    devices = dict.fromkeys(("cpu", device_here().type))
    types = ("float32", "bfloat16", "float64")
    found = {d: {t: reasons(torch.device(d), getattr(torch, t)) for t in types} for d in devices}
    if as_json:
        return print_json(found)
    table = Table(title=f"attention backends, torch {torch.__version__}", title_justify="left")
    for column in ("device", "backend", *types):
        table.add_column(column)
    reasons_of: dict[str, list[str]] = {}
    for device, by_type in found.items():
        for name in by_type[types[0]]:
            table.add_row(device, name, *("no" if by_type[t][name] else "runs" for t in types))
            for t in types:
                if why := by_type[t][name]:
                    reasons_of.setdefault(f"{name} on {device}: {why}", []).append(t)
    print_table(table)
    for why, of_types in reasons_of.items():
        print_text(f"{why} ({', '.join(of_types)})")
    out.print("`speed.attention: auto` uses the first that runs.")


@app.command()
@reporting
def kernels(
    recipe: RecipePath,
    root: Root = None,
    changes: Set = None,
    stage: Annotated[
        str | None, typer.Option(help="The stage of the batches. \\[default: the first]")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=100, help="The number of steps.")] = 1,
    trust_files: Trust = False,
    as_json: Json = False,
) -> None:
    """Time every backend on one layer's attention with the batches of a stage."""
    read = the_recipe(recipe, root, changes)
    with working(STARTING):
        from lmmkit import build
        from lmmkit.attention_benchmark import measure
        from lmmkit.errors import UserError
        from lmmkit.errors.commands import BENCH_NO_STAGE
        from lmmkit.plan import shapes
        from lmmkit.plan.prepare import prepare

    prepared = prepare(read, trust_files=trust_files)
    stage = stage or next(iter(prepared.plans))
    if stage not in prepared.plans:
        raise UserError(BENCH_NO_STAGE.at("--stage", got=f"`{stage}`", stages=", ".join(prepared.plans)))
    pipeline = prepared.pipeline(stage)
    numbers = range(min(steps, prepared.steps(stage)))
    batches = [b for i in counted("packing steps", numbers) for b in pipeline.step(i) if len(b)]
    device = build.device_here()
    dtype = build.compute_dtype(prepared.recipe, device)
    shape = shapes.decoder_shape(prepared.recipe, prepared.dims.vocab)
    found = measure(shape, batches, device, dtype)
    if as_json:
        return print_json([asdict(each) for each in found])
    rows, asked = sum(map(len, batches)), sum(len(b.attention.row_R) for b in batches)
    several = plural(len(batches), "micro-batch", "micro-batches")
    table = Table(
        title=f"one layer's attention, forward and backward: {rows:,} rows in {several}, "
        f"the mass of {asked:,}; {device.type}, {str(dtype).removeprefix('torch.')}",
        title_justify="left", caption="errors: max|a - b| / max|b| against float64", caption_justify="left",
    )  # fmt: skip
    columns = (
        "ms",
        "rows a second",
        *(("MiB above",) if device.type == "cuda" else ()),
        "outputs",
        "mass",
        "gradient",
    )
    table.add_column("backend")
    for column in columns:
        table.add_column(column, justify="right")
    for each in found:
        if each.seconds is not None and each.error is not None:
            peak = () if each.peak is None else (f"{each.peak / 2**20:,.0f}",)
            errors = (f"{error:.1e}" for error in each.error)
            table.add_row(
                each.backend, f"{1e3 * each.seconds:,.1f}", f"{rows / each.seconds:,.0f}", *peak, *errors
            )
    print_table(table)
    for each in found:
        if each.why_not:
            print_text(f"{each.backend} left out: {each.why_not}")
