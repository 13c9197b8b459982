"""lmmkit model import | export | show: converts and describes model folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Column, Table

from lmmkit.commands.support.common import STARTING, Json, out, print_json, print_table, reporting, safe
from lmmkit.progress import working

if TYPE_CHECKING:
    from lmmkit.verify_export import ExportComparison

app = typer.Typer(no_args_is_help=True, help="Import, export and describe models.")


@app.command("import")
@reporting
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A llava-hf, LLaVA, decoder or encoder folder.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DST", help="The model folder to write; new.")],
    vision: Annotated[Path | None, typer.Option(help="A folder with the encoder that SRC lacks.")] = None,
    base: Annotated[Path | None, typer.Option(help="A folder with the decoder that SRC lacks.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also read .bin files, with torch's weights-only reader.")
    ] = False,
    template: Annotated[str | None, typer.Option(help="The chat template.")] = None,
) -> None:
    """Convert a public model into a model folder of lmmkit; every value stays the same."""
    with working(STARTING):
        from lmmkit.import_export import import_model

    parts = import_model(
        source, folder, vision=vision, base=base, allow_pickle=allow_pickle, template=template
    )
    use = f"Try it: `lmmkit chat {folder}`"
    if "text" not in parts:
        use = f"In a recipe: `model.vision: {{from: {folder}}}`"
    out.print(f"{source} is now in {folder}. {use}")


@app.command()
@reporting
def export(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run, or a model folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; new.")],
    kind: Annotated[
        Literal["llava-hf", "llava", "lmmkit", "peft"],
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
    """Write a model in a public format; `llava-hf` opens in transformers."""
    with working(STARTING):
        from lmmkit.import_export import HELD, export_model
        from lmmkit.verify_export import require_equal, require_transformers, verify_export

    if verify:
        require_transformers(kind)
    export_model(model, folder, kind, dtype=HELD.get(dtype), base=base)
    out.print(f"{model} is now in {folder}, in the {kind} format.")
    if verify:
        with working("comparing the export with the model"):
            found = verify_export(model, folder, kind, dtype=HELD.get(dtype))
        out.print(_comparisons(found))
        require_equal(folder, found)


@app.command()
@reporting
def show(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run or any model folder.")],
    as_json: Json = False,
) -> None:
    """Print the architecture of a model, its parameters by part, dtype and size."""
    with working(STARTING):
        from lmmkit.import_export import show_model

    found = show_model(model)
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
        out.print(f"chat: {_words(sections['chat'])}")


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
