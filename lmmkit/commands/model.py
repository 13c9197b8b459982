"""lmmkit model import | export | show, and lmmkit reference: converts, describes and asks model folders."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Column, Table

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
    safe,
    the_recipe,
)
from lmmkit.progress import plural, working

if TYPE_CHECKING:
    from lmmkit.verify_export import ExportComparison

app = typer.Typer(no_args_is_help=True, help="Import, export and describe models.")


@app.command("import")
@reporting
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A llava-hf, llava-next, LLaVA, decoder or encoder folder.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DST", help="The model folder to write; new.")],
    vision: Annotated[Path | None, typer.Option(help="A folder with the encoder that SRC lacks.")] = None,
    base: Annotated[Path | None, typer.Option(help="A folder with the decoder that SRC lacks.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also read .bin files, with torch's weights-only reader.")
    ] = False,
    template: Annotated[
        str | None, typer.Option(help="The chat template. \\[default: by the control tokens]")
    ] = None,
) -> None:
    """Convert a public model into a model folder of lmmkit; every value stays the same."""
    with working(STARTING):
        from lmmkit.import_export import import_model

    parts = import_model(
        source, folder, vision=vision, base=base, allow_pickle=allow_pickle, template=template
    )
    use = f"Try it: `{shlex.join(['lmmkit', 'chat', str(folder)])}`"
    if "text" not in parts:
        use = f"In a recipe: `model.vision: {{from: {folder}}}`"
    out.print(f"{source} is now in {folder}. {use}")


@app.command()
@reporting
def export(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run, or a model folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; new.")],
    kind: Annotated[
        Literal["llava-hf", "llava-next", "llava", "lmmkit", "peft"],
        typer.Option("--format", help="The format of the folder; peft: only the last stage's LoRA."),
    ] = "llava-hf",
    dtype: Annotated[
        Literal["as-is", "float32", "float16", "bfloat16"], typer.Option(help="The dtype of the weights.")
    ] = "as-is",
    base: Annotated[
        str | None, typer.Option(help="peft: the name of the base model in the adapter's file.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Open the folder with transformers, and compare it with the model."),
    ] = False,
) -> None:
    """Write a model in a public format; `llava-hf` and, with tiles, `llava-next` open in transformers."""
    with working(STARTING):
        from lmmkit.import_export import DTYPES, export_model
        from lmmkit.verify_export import require_equal, require_transformers, verify_export

    if verify:
        require_transformers(kind)
    export_model(model, folder, kind, dtype=DTYPES.get(dtype), base=base)
    out.print(f"{model} is now in {folder}, in the {kind} format.")
    if verify:
        found = verify_export(model, folder, kind, dtype=DTYPES.get(dtype))
        out.print(_comparisons(found))
        require_equal(folder, found)


@app.command()
@reporting
def show(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run or any model folder.")],
    vision: Annotated[
        Path | None, typer.Option(help="A folder with the encoder that a public model lacks.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the architecture of a model, its parameters by part, dtype and size."""
    with working(STARTING):
        from lmmkit.show_model import show_model

    found = show_model(model, vision=vision)
    if as_json:
        return print_json(found)
    table = Table(title=f"{model}: {found['kind']}, {found['dtype']}", title_justify="left")
    for column in ("part", "parameters", "what"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    counts, sections = found["parameters"], found["model"]
    assert isinstance(counts, dict) and isinstance(sections, dict)
    for part, count in counts.items():
        table.add_row(part, f"{count:,}", _words(sections.get(part)))
    table.add_row("all", f"{found['total']:,}", f"{found['bytes'] / 2**20:,.1f} MiB")
    print_table(table)
    if "text" in sections:
        out.print(f"tokenizer: {found['tokenizer'] or 'no'} ids")
        print_text(f"chat: {_words(sections['chat'])}")


@reporting
def reference(
    model: Annotated[
        Path, typer.Argument(metavar="RUN_OR_MODEL", help="The model that computes: a run or a folder.")
    ],
    recipe: RecipePath,
    file: Annotated[Path, typer.Option("--out", metavar="FILE", help="The JSONL file to write; new.")],
    stage: Annotated[str, typer.Option("--stage", help="The stage whose records and terms are used.")],
    top_k: Annotated[
        int,
        typer.Option(
            min=0, max=1000, help="How many of the likeliest tokens of each supervised row to store too."
        ),
    ] = 0,
    root: Root = None,
    changes: Set = None,
    trust_files: Trust = False,
) -> None:
    """Store the log-probabilities that the terms of a stage read, by a model, in copies of its records.

    Each record gets logp_VIEW_ROLE, a sum over the tokens that a term selects, and reference, the hash of the weights;
    with --top-k also top_k.
    """
    read = the_recipe(recipe, root, changes)
    with working(STARTING):
        from lmmkit import build
        from lmmkit.data.views import dropped_text
        from lmmkit.errors import MachineError, UserError, raise_all
        from lmmkit.errors.commands import CANNOT_WRITE, EXISTS_FILE
        from lmmkit.errors.training import NO_STAGE
        from lmmkit.inference.load import find_model_folder, load
        from lmmkit.inference.record_scores import score_names, scored_records
        from lmmkit.plan.prepare import prepare
        from lmmkit.plan.reference_checks import folder_problems
        from lmmkit.weights.weights_hash import weights_hash

    if stage not in read.stages:
        raise UserError(NO_STAGE.at("--stage", got=f"`{stage}`", stages=", ".join(read.stages)))
    prepared, folder = prepare(read, trust_files=trust_files), find_model_folder(model)
    score_names(prepared, stage, top_k)
    raise_all(folder_problems(prepared, stage, folder, str(folder)))
    if file.exists():
        raise UserError(EXISTS_FILE.at(str(file), got="a file that exists"))
    device, dropped, written = build.device_here(), Counter[str](), 0
    objective = load(folder, device=device, trust_files=trust_files).objective
    of = weights_hash(folder)
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("w", encoding="utf-8") as lines:
            for record in scored_records(prepared, stage, objective, device, dropped, top_k):
                lines.write(json.dumps({**record, "reference": of}) + "\n")
                written += 1
        part.rename(file)
    except OSError as error:
        raise MachineError(CANNOT_WRITE.at(str(file), got=error.strerror or str(error))) from error
    finally:
        part.unlink(missing_ok=True)
    cost = f" ({dropped_text(dropped)})" if dropped else ""
    out.print(f"{file}: {plural(written, 'record')} with log-probabilities by model {of}{cost}.")


def _comparisons(found: Sequence[ExportComparison]) -> Table:
    """Returns the comparisons of an export, one a line where the terminal is wide enough."""
    table = Table.grid("", "", Column(overflow="fold"), padding=(0, 0, 0, 2), pad_edge=True)
    for each in found:
        table.add_row(each.what, {True: "equal", False: "DIFFERS", None: "-"}[each.equal], safe(each.result))
    return table


def _words(section: dict | None) -> str:
    from lmmkit.recipe import flow_text

    if not section:
        return "none"
    shown = {
        k: v for k, v in section.items() if v and not isinstance(v, list) and (k, v) != ("weights", "none")
    }
    return ", ".join(f"{k} {flow_text(v) if isinstance(v, dict) else v}" for k, v in shown.items())
