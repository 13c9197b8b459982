"""lmmkit plugins list | explain | trace | test | cost | new"""

from __future__ import annotations

import keyword
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from lmmkit.commands.support.plugin_templates import PluginKind, written
from lmmkit.progress import working

if TYPE_CHECKING:
    from lmmkit.recipe import Recipe

app = typer.Typer(
    no_args_is_help=True, help="Begin, list, try and measure plugins, and show what they do in a recipe."
)


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

    if _is_file(what):
        found = file_components(str((root or Path()) / what), trust_files=trust_files)
        return print_text("\n\n".join(component_text(name, each) for name, each in found.items()))
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
    samples: Annotated[int, typer.Option(min=1, help="How many of each stage.")] = 2,
    trust_files: Trust = False,
) -> None:
    """Print a recipe's first samples: the spans of each view, and what is supervised.

    In a layout `!` marks supervised spans and `*` learned tokens.
    """
    with working(STARTING):
        from lmmkit.plan.explain import stage_text
        from lmmkit.plan.explain import trace_samples as traced
        from lmmkit.plan.prepare import prepare

    read = the_recipe(recipe, root, changes)
    _require_stage(read, stage)
    prepared = prepare(read, trust_files=trust_files)
    for name in read.stages if stage is None else [stage]:
        print_text(stage_text(prepared, prepared.plans[name]))
        for line in traced(prepared, name, samples):
            print_text(line)


def _require_stage(recipe: Recipe, stage: str | None) -> None:
    """Raises `UserError` if `--stage` names a stage that the recipe does not have."""
    from lmmkit.errors import UserError, did_you_mean
    from lmmkit.errors.commands import PLUGINS_NO_STAGE

    if stage is not None and stage not in recipe.stages:
        suggestion = did_you_mean(stage, recipe.stages)
        raise UserError(PLUGINS_NO_STAGE.at("--stage", got=f"`{stage}`", suggestion=suggestion))


@app.command("cost")
@reporting
def cost_(
    recipe: RecipePath,
    root: Root = None,
    changes: Set = None,
    stage: Annotated[str | None, typer.Option(help="\\[default: the first]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each step is timed.")] = 25,
    trust_files: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure what each plugin of a stage adds to the time, memory and rows of a step.

    Steps on the recipe's data run with all plugins, and with each one left out, in turns. Nothing is written.
    """
    read = the_recipe(recipe, root, changes)
    _require_stage(read, stage)
    with working(STARTING):
        import torch

        from lmmkit import build
        from lmmkit.plan.prepare import prepare
        from lmmkit.plugin_costs import plugin_costs
        from lmmkit.training.monitoring.determinism import naming_kernel, repeatable

    stage = stage or next(iter(read.stages))
    prepared = prepare(read, trust_files=trust_files, data=read.stages[stage].data)
    if read.speed.threads:
        torch.set_num_threads(read.speed.threads)
    with repeatable(read), naming_kernel(f"stage {stage}", read):
        found = plugin_costs(prepared, stage, rounds, build.device_here())
    if as_json:
        return print_json(asdict(found))
    cuda, MiB = found.device == "cuda", 2**20
    table = Table(
        title=f"stage {stage} with all plugins: {1e3 * found.seconds:,.0f} ms and {found.rows:,.0f} rows a step, "
        f"{found.bytes / MiB:,.1f} MiB {'at the peak' if cuda else 'saved for the backward pass'} ({found.device})",
        title_justify="left",
        caption=f"time: of a step with all plugins, divided by that without this one; median and quartiles of "
        f"{rounds} rounds. MiB and rows: what it adds",
        caption_justify="left",
    )  # fmt: skip
    table.add_column("plugin")
    for column in ("time", "quartiles", "MiB", "rows", "parameters"):
        table.add_column(column, justify="right")
    table.add_column("left out with it")
    for each in found.plugins:
        if each.ratio is not None and each.bytes is not None:
            figures = f"{each.ratio:.2f}", f"{each.low:.2f} to {each.high:.2f}", f"{each.bytes / MiB:+,.1f}"
            row = (*figures, f"{each.rows:+,.0f}", f"{each.parameters:,}", ", ".join(each.off_with))
            table.add_row(each.name, *row)
    print_table(table)
    if not found.plugins:
        out.print(f"no plugin is active in stage {stage}.")
    for each in found.plugins:
        if each.why_not:
            print_text(f"the stage does not run without {each.name}: {each.why_not}")


@app.command()
@reporting
def test(
    what: Annotated[
        str, typer.Argument(metavar="FILE.py|RECIPE", help="A plugin file, or a recipe with its data.")
    ],
    root: Root = None,
    changes: Set = None,
    trust_files: Trust = False,
) -> None:
    """Try the plugins of a file or of a recipe without a model, their views in a second process too.

    A file is tried on drawn scenes; `--set plugins.NAME.KEY=VALUE` gives the settings of its components.
    """
    with working(STARTING):
        from lmmkit.errors import raise_all
        from lmmkit.plan.dry_run.rehearsal import file_prepared
        from lmmkit.plan.dry_run.run import plugin_problems, view_subject
        from lmmkit.plan.dry_run.second_process import other_views
        from lmmkit.plan.prepare import prepare

    with working("trying the plugins"):
        if _is_file(what):
            path = str((root or Path()) / what)
            prepared = file_prepared(path, trust_files=trust_files, changes=changes or ())
        else:
            prepared = prepare(the_recipe(Path(what), root, changes), trust_files=trust_files)
        problems = plugin_problems(prepared)
    with working("making views in a second process"):
        faulty = {problem.where.partition(".")[0] for problem in problems}
        makers = [(stage, task) for stage, plan in prepared.plans.items() for task in plan.makers]
        tasks = {f"{stage}/{task.name}": (stage, task) for stage, task in makers if task.name not in faulty}
        problems += other_views({key: view_subject(prepared, *each) for key, each in tasks.items()})
    raise_all(problems)
    out.print(f"no problems: {', '.join(prepared.instances.components) or 'the recipe has no plugins'}.")


def _is_file(what: str) -> bool:
    """Returns whether the argument is FILE.py or FILE.py:NAME."""
    return what.partition(":")[0].endswith(".py")


@app.command()
@reporting
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the component, and of its module.")],
    kind: Annotated[PluginKind, typer.Option(help="What the plugin adds.")],
    package: Annotated[
        bool, typer.Option("--package", help="Write a package that can be installed.")
    ] = False,
    folder: Annotated[Path, typer.Option("--out", help="Where to write.")] = Path(),
) -> None:
    """Write a plugin that works, its recipe and its test, to start from."""
    from lmmkit.errors import UserError, raise_all
    from lmmkit.errors.commands import PLUGINS_FILES, PLUGINS_NAME

    with working(STARTING):
        from lmmkit.plan.instances import TORCH_NAMES
        from lmmkit.recipe.rules.plugin_rules import RESERVED_NAMES

    taken = name in {*sys.stdlib_module_names, "lmmkit", "torch", "numpy", *TORCH_NAMES, *RESERVED_NAMES}
    if keyword.iskeyword(name) or not re.fullmatch("[a-z][a-z0-9_]*", name) or taken:
        raise UserError(PLUGINS_NAME.at("NAME", got=f"`{name}`"))
    files = {folder / path: text for path, text in written(name, kind, package=package).items()}
    raise_all(PLUGINS_FILES.at(str(path), got="a file") for path in files if path.exists())
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        out.print(str(path))
    where = folder / name / "src" / name / "__init__.py" if package else folder / f"{name}.py"
    out.print(f"Try it: {shlex.join(['lmmkit', 'plugins', 'test', str(where), '--trust-files'])}")
