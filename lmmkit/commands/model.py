"""lmmkit model import | export | show"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from lmmkit.commands.support.common import Json, out, print_json, reporting
from lmmkit.recipe import flow_text

app = typer.Typer(no_args_is_help=True, help="Models of others: read, write, look at.")


@app.command("import")
@reporting
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A llava-hf, LLaVA, decoder or encoder folder.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DST", help="The model folder to write; new.")],
    vision: Annotated[Path | None, typer.Option(help="A folder with the encoder SRC leaves out.")] = None,
    base: Annotated[Path | None, typer.Option(help="A folder with the decoder SRC leaves out.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also read .bin files, their weights alone.")
    ] = False,
    template: Annotated[str | None, typer.Option(help="What turns are wrapped in.")] = None,
) -> None:
    """Write a public model as a model folder of lmmkit's, value for value."""
    from lmmkit.import_export import import_model

    parts = import_model(
        source, folder, vision=vision, base=base, allow_pickle=allow_pickle, template=template
    )
    use = f"Talk to it: `lmmkit chat {folder}`"
    if "text" not in parts:
        use = f"In a recipe: `model.vision: {{from: {folder}}}`"
    out.print(f"{folder} holds {source}. {use}")


@app.command()
@reporting
def export(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run, or a model folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; new.")],
    kind: Annotated[
        Literal["llava-hf", "llava", "lmmkit", "peft"],
        typer.Option("--format", help="Whose layout; peft: the last stage's low-rank updates alone."),
    ] = "llava-hf",
    dtype: Annotated[
        Literal["as-is", "float32", "float16", "bfloat16"], typer.Option(help="Of the weights.")
    ] = "as-is",
    base: Annotated[
        str | None, typer.Option(help="peft: what its file calls the model the adapter belongs on.")
    ] = None,
) -> None:
    """Write a model in a public format; `llava-hf` opens in transformers."""
    from lmmkit.import_export import HELD, export_model

    export_model(model, folder, kind, dtype=HELD.get(dtype), base=base)
    out.print(f"{folder} holds {model} in the {kind} format.")


@app.command()
@reporting
def show(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run or any model folder.")],
    as_json: Json = False,
) -> None:
    """Print a model's architecture, parameters by part, type and size."""
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
    out.print(table)
    if "text" in sections:
        out.print(f"tokenizer: {found['tokenizer'] or 'no'} ids")
        out.print(f"chat: {_words(sections['chat'])}")


def _words(section: dict | None) -> str:
    if not section:
        return "none"
    told = {
        k: v for k, v in section.items() if v and not isinstance(v, list) and (k, v) != ("weights", "none")
    }
    return ", ".join(f"{k} {flow_text(v) if isinstance(v, dict) else v}" for k, v in told.items())
