"""lmmkit plugins list | explain | trace"""

from __future__ import annotations

from pathlib import Path
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
    print_json,
    print_table,
    print_text,
    reporting,
    the_recipe,
)
from lmmkit.progress import working

app = typer.Typer(no_args_is_help=True, help="List plugins, and show what they do in a recipe.")


@app.command("list")
@reporting
def list_(as_json: Json = False) -> None:
    """List the installed components from package metadata; nothing is imported."""
    with working(STARTING):
        from lmmkit.registry import installed, origin

    found = {name: origin(point) for name, point in sorted(installed().items())}
    if as_json:
        return print_json(found)
    table = Table()
    table.add_column("component")
    table.add_column("from")
    for name, source in found.items():
        table.add_row(name, source)
    print_table(table)


@app.command()
@reporting
def explain(
    what: Annotated[
        str,
        typer.Argument(metavar="COMPONENT|FILE.py|RECIPE", help="A component, a plugin file, or a recipe."),
    ],
    root: Root = None,
    changes: Set = None,
    trust_files: Trust = False,
) -> None:
    """Print the settings of a component or of all components in a file, or the plan of a recipe."""
    with working(STARTING):
        from lmmkit.plan.explain import component_text, plan_text
        from lmmkit.plan.prepare import prepare
        from lmmkit.recipe.shipped import shipped
        from lmmkit.registry import file_components, installed, open_registry

    file, _, only = what.partition(":")
    if file.endswith(".py"):
        found = file_components((root or Path()) / file, trust_files=trust_files)
        texts = [component_text(name, each) for name, each in found.items() if only in ("", name)]
        return print_text("\n\n".join(texts) or f"{what} offers no component.")
    is_recipe = what.endswith((".yaml", ".yml")) or what in shipped() or Path(what).exists()
    if what in installed() or not is_recipe:
        registry = open_registry(
            {what: what}, where={what: f"plugins explain {what}"}, trust_files=trust_files
        )
        return print_text(component_text(what, registry.components[what]))
    prepared = prepare(the_recipe(Path(what), root, changes), trust_files=trust_files)
    print_text(plan_text(prepared).rstrip())


@app.command()
@reporting
def trace(
    recipe: RecipePath,
    root: Root = None,
    changes: Set = None,
    stage: Annotated[str | None, typer.Option(help="\\[default: every stage]")] = None,
    samples: Annotated[int, typer.Option(min=1)] = 2,
    trust_files: Trust = False,
) -> None:
    """Print a recipe's first samples: the spans of each view, and what is supervised.

    In a layout `!` marks supervised spans and `*` learned tokens.
    """
    from lmmkit.errors import UserError, did_you_mean
    from lmmkit.errors.commands import PLUGINS_NO_STAGE

    with working(STARTING):
        from lmmkit.plan.explain import stage_text
        from lmmkit.plan.explain import trace_samples as traced
        from lmmkit.plan.prepare import prepare

    read = the_recipe(recipe, root, changes)
    if stage is not None and stage not in read.stages:
        suggestion = did_you_mean(stage, read.stages)
        raise UserError(PLUGINS_NO_STAGE.at("--stage", got=f"`{stage}`", suggestion=suggestion))
    prepared = prepare(read, trust_files=trust_files)
    for name in read.stages if stage is None else [stage]:
        print_text(stage_text(prepared, prepared.plans[name]))
        for line in traced(prepared, name, samples):
            print_text(line)
