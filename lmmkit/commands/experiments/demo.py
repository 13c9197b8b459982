"""lmmkit demo: evaluates the model that comes with lmmkit on drawn scenes, and writes a report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from lmmkit.commands.support.common import STARTING, err, out, refused_file, reporting
from lmmkit.errors import UserError
from lmmkit.errors.commands import DEMO_NOT_EMPTY
from lmmkit.progress import working

SCENES = (300, 100)  # for the majority baseline, and held out
TASKS = ("answers", "terms")  # `restore` needs the model of the first stage, which does not come with lmmkit


@reporting
def demo(
    to: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")] = Path("demo"),
) -> None:
    """Evaluate the small trained model that comes with lmmkit on drawn scenes, and write a report. Trains nothing.

    Needs no network and no GPU. Scenes, answers, figures and the page are computed when the command runs.
    """
    _make(to)
    with working(STARTING):
        from lmmkit.commands.evaluate import show_results
        from lmmkit.demo.demo_run import write_demo_run
        from lmmkit.evaluate.run import evaluate
        from lmmkit.recipe import read_recipe
        from lmmkit.report.write_page import write_page
        from lmmkit.scenes import write_scenes

    scenes, page, (count, heldout) = to / "scenes", to / "report.html", SCENES
    with working("drawing scenes", count + heldout, "scenes") as move:
        write_scenes(scenes, count=count, heldout=heldout, progress=lambda done, total: move(done))
    run = write_demo_run(to / "direct", scenes)
    evaluate(
        run, read_recipe(run.resolved, root=scenes.resolve()), only=TASKS, notify=err.print,
        show=lambda results: show_results(results, as_json=False),
    )  # fmt: skip
    with working("writing the report"):
        write_page([run.path], page)
    out.print(f"{to}: report.html, direct/ (the model as a run, with its answers), scenes/")
    out.print("The model was trained before, by the quickstart, on other scenes. Next:")
    for line in (
        f"open {_quoted(page)} in a browser: every question with its answer",
        "lmmkit chat --demo",
        f"lmmkit chat {_quoted(run.path)} --image {_quoted(sorted((scenes / 'images' / 'heldout').iterdir())[0])}",
        "lmmkit quickstart   trains this model and one without plugins, and compares them",
    ):
        out.print(f"  {line}")


def _make(folder: Path) -> None:
    """Makes the folder. Raises `UserError` if it is a file or contains something."""
    try:
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            got = "a file" if folder.is_file() else "a folder with files in it"
            raise UserError(DEMO_NOT_EMPTY.at(str(folder), got=got))
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused_file(error, folder) from error


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
