"""The command line. Each command imports its modules when it runs, so that help does not import torch."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lmmkit import __version__
from lmmkit.commands import (
    bench,
    chat,
    check,
    ckpt,
    data,
    diff,
    env,
    explain,
    model,
    plugins,
    quickstart,
    recipes,
    train,
)
from lmmkit.commands import evaluate as eval_
from lmmkit.commands.answers import group as answers
from lmmkit.commands.experiments import ablate, demo, report, runs

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train LLaVA-class multimodal models from recipes and plugins. Start with `lmmkit demo`.",
)  # fmt: skip
app.command()(demo.demo)
app.command()(quickstart.quickstart)
app.command()(train.train)
app.command()(check.check)
app.command("eval")(eval_.evaluate)
app.command()(ablate.ablate)
app.command()(chat.chat)
app.command()(model.reference)
app.command()(report.report)
app.command("runs")(runs.show_runs)
app.command()(diff.diff)
app.command()(explain.explain)
app.command()(env.env)
app.add_typer(answers.app, name="answers")
app.add_typer(recipes.app, name="recipes")
app.add_typer(data.app, name="data")
app.add_typer(plugins.app, name="plugins")
app.add_typer(model.app, name="model")
app.add_typer(ckpt.app, name="ckpt")
app.add_typer(bench.app, name="bench")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lmmkit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Takes the options of `lmmkit` without a command."""


def main() -> None:
    """Runs the command line.

    Exit codes: 0 success; 1 a bug in lmmkit; 2 invalid user input; 3 a machine error; 130/143 stopped.
    """
    app()


if __name__ == "__main__":
    sys.exit(main())
