"""lmmkit eval RUN_OR_MODEL"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lmmkit.commands.support.common import (
    STARTING,
    Dtype,
    Json,
    Trust,
    err,
    print_json,
    print_table,
    print_text,
    reporting,
)
from lmmkit.progress import plural, working

if TYPE_CHECKING:
    from lmmkit.errors import Problem
    from lmmkit.evaluate.benchmarks.benchmark import Benchmark
    from lmmkit.evaluate.questions.benchmark_task import BenchmarkTask
    from lmmkit.evaluate.run import TaskResult
    from lmmkit.evaluate.task import Figure, Line
    from lmmkit.recipe import Recipe
    from lmmkit.runs.run_folder import RunFolder


SHOWN = 10  # answers that differ from those to the question alone


@reporting
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run, or a model folder.")],
    on: Annotated[
        list[str] | None,
        typer.Option(
            "--on",
            metavar="TASK,TASK",
            help="Tasks of the recipe, or benchmarks. \\[default: all]",
        ),
    ] = None,
    files: Annotated[
        Path | None, typer.Option("--files", metavar="DIR", help="Official files, in DIR/BENCHMARK.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="The split of the benchmarks. \\[default: the first of each]"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, metavar="N", help="Only the first N items of the benchmarks."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where results go. \\[default: the run]")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option("--root", help="Where the recipe's relative paths start. \\[default: as in training]"),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Also with a blank image, with another item's image, and with none."),
    ] = False,
    published: Annotated[bool, typer.Option("--published", help="Also the published figures.")] = False,
    alone: Annotated[
        int,
        typer.Option(
            "--alone", min=0, metavar="N", help="Ask N questions again, each alone, and compare the answers."
        ),
    ] = 0,
    dtype: Dtype = "float32",
    trust_files: Trust = False,
    as_json: Json = False,
) -> None:
    """Evaluate a model on the tasks of its recipe, or on benchmarks; adds to results.json.

    Every answer is kept. The same command continues after a kill, and asks nothing twice.
    """
    with working(STARTING):
        import torch

        from lmmkit.errors import UserError, raise_all
        from lmmkit.errors.answers import NO_ROOT
        from lmmkit.evaluate.controls import PROBE
        from lmmkit.evaluate.run import evaluate as run_tasks
        from lmmkit.evaluate.run import evaluate_model
        from lmmkit.training.distributed.process_group import joined

    controls = PROBE if probe else None
    names = [name for each in on or () for name in each.split(",") if name]
    with joined() as ranks:
        found = _run_of(run, root)
        if found is not None and found[1].speed.threads:
            torch.set_num_threads(found[1].speed.threads)
        if found is None and root is not None:
            raise UserError(NO_ROOT.at("--root", got=f"`--root {root}` with the model folder {run}"))
        own, benchmarks = _divided(names, found[1] if found else None, files, split, limit)
        options = {"--files": files, "--split": split, "--limit": limit, "--published": published or None}
        raise_all(() if benchmarks else _unused(options))
        raise_all(problem for task in benchmarks.values() for problem in _file_problems(task))
        shared = {
            "controls": controls, "dtype": getattr(torch, dtype), "trust_files": trust_files, "out": folder,
            "notify": (lambda text: err.print(text)) if ranks.first else (lambda text: None),
            "ranks": ranks, "alone": alone,
            "show": (lambda found: show_results(found, as_json)) if ranks.first else (lambda found: None),
        }  # fmt: skip
        if found is None:
            shared |= {"out": _required(folder, run), "controls": controls or ()}
            results = evaluate_model(run, benchmarks, **shared)
        else:
            results = run_tasks(*found[:2], only=own, benchmarks=benchmarks, stage=found[2], **shared)
        for name, task in benchmarks.items() if published and ranks.first and not as_json else ():
            label = run.name if limit is None else f"{run.name}, first {limit}"
            print_published(task.benchmark.name, task.benchmark, results[name].figures, label)


def _run_of(path: Path, root: Path | None) -> tuple[RunFolder, Recipe, str | None] | None:
    """Returns the run of a path, its recipe, and the stage that the path names; None for a model elsewhere."""
    from lmmkit.recipe import read_recipe
    from lmmkit.runs.run_folder import RunFolder

    is_model = (path / "config.json").is_file()
    if is_model and not RunFolder(path.resolve().parent.parent).is_run:
        return None
    folder = RunFolder.open(path.resolve().parent.parent if is_model else path)
    return (
        folder,
        read_recipe(folder.resolved, root=root or Path(folder.root)),
        path.name if is_model else None,
    )


def _divided(
    names: Sequence[str], recipe: Recipe | None, files: Path | None, split: str | None, limit: int | None
) -> tuple[list[str], dict[str, BenchmarkTask]]:  # fmt: skip
    """Returns the tasks of the recipe by name, and the benchmarks as tasks. Raises `UserError` for other names."""
    from lmmkit.errors import did_you_mean, raise_all
    from lmmkit.errors.plan import NO_TASK
    from lmmkit.evaluate.benchmarks.names import BENCHMARKS
    from lmmkit.evaluate.questions.benchmark_task import BenchmarkTask
    from lmmkit.recipe import Task

    tasks = recipe.evaluate.tasks if recipe is not None and recipe.evaluate is not None else {}
    unknown = [name for name in names if name not in tasks and name not in BENCHMARKS]
    if recipe is None and not names:
        unknown = [""]
    known = [*tasks, *BENCHMARKS]
    raise_all(
        NO_TASK.at("--on", got=f"`{name}`" if name else "no name", nearest=did_you_mean(name, known))
        for name in unknown
    )
    benchmarks: dict[str, BenchmarkTask] = {}
    for name in (name for name in names if name not in tasks):
        task = BenchmarkTask(
            name, Task(kind=name, files=str(files) if files else None, split=split, samples=limit or "all")
        )
        benchmarks[name if split in (None, task.benchmark.splits[0]) else f"{name}-{split}"] = task
    return [name for name in names if name in tasks], benchmarks


def _unused(options: Mapping[str, object]) -> Iterator[Problem]:
    """Yields a problem for each option that is given, where no benchmark is evaluated."""
    from lmmkit.errors.answers import NO_BENCHMARK

    for name, value in options.items():
        if value is not None:
            yield NO_BENCHMARK.at(name, got=name if value is True else f"{name} {value}")


def _file_problems(task):
    return task.file_problems("--files", "Name the folder above it with `--files DIR`.")


def _required(folder: Path | None, model: Path) -> Path:
    from lmmkit.errors import UserError
    from lmmkit.errors.answers import NO_OUT

    if folder is None:
        raise UserError(NO_OUT.at("--out", got=f"the model folder {model}"))
    return folder


def show_results(results: Mapping[str, TaskResult], as_json: bool) -> None:
    """Prints the results of tasks: their tables and the lines below them, or all as JSON."""
    if as_json:
        return print_json({name: result.as_json() for name, result in results.items()})
    for name, result in results.items():
        if result.figures:
            print_table(aligned(name, with_coverage(result.task.table(result.figures), result.facts)))
        for line in (*result.task.remarks(result.figures), *notes(result.facts), f"{result.seconds:.1f} s"):
            print_text(f"{name}: {line}")


def with_coverage(table: Sequence[Line], facts: Mapping) -> list[Line]:
    """Returns a table whose lines say of how many items the figures are, if not of all."""
    coverage = facts.get("coverage", {})
    note = f" (first {coverage['expected']:,} of {coverage['of']:,})" if "of" in coverage else ""
    return [table[0], *((line[0] + note, *line[1:]) for line in table[1:])]


def notes(facts: Mapping) -> Iterable[str]:
    """Yields the lines below a table: the status if there is no score, the coverage, the kinds of answers."""
    coverage = facts.get("coverage", {})
    if facts.get("status", "scored") != "scored":
        files = [facts["judge"]] if "judge" in facts else []
        files += [f"{facts['upload']}/"] if "upload" in facts else []
        which = f"; see {' and '.join(files)}" if files else ""
        if "of" in coverage:
            which = f"; the files for it need the answers to all {coverage['of']:,} questions"
        yield f"{facts['status']}: no score here{which}"
    if coverage:
        parts = [f"{coverage['answered']:,} of {coverage['expected']:,} answered"]
        if "of" in coverage:
            parts[0] += f", the first of {coverage['of']:,}"
        parts += [
            f"{coverage[key]:,} {key}" for key in ("unparsed", "fallback", "truncated") if coverage[key]
        ]
        for key, text in (("missing", "missing"), ("extra", "of no question"), ("repeated", "twice")):
            parts += [f"{coverage[key]:,} {text}"] if coverage.get(key) else []
        if "parsed" in coverage:
            parts.append("  ".join(f"{answer!r} {n:,}" for answer, n in coverage["parsed"].items()))
        yield "; ".join(parts)
    if "puzzles" in facts:
        yield f"what was shuffled, and the model's order: {facts['puzzles']} in the folder of the task"
    if alone := facts.get("alone"):
        differ = alone["differ"]
        verb = "differs" if len(differ) == 1 else "differ"
        yield f"{plural(alone['asked'], 'question')} asked alone: {plural(len(differ), 'answer')} {verb}"
        for each in differ[:SHOWN]:
            where = (
                "its batch now gives another answer"
                if each["token"] is None
                else f"from token {each['token']}"
            )
            gap = "" if each["gap"] is None else f", the two best logits {each['gap']:.1e} apart"
            yield f"differs: {each['id']} ({each['condition']}) {where}{gap}"


def print_published(name: str, made: Benchmark, figures: Mapping[str, Figure], label: str) -> None:
    """Prints one's own figures below the published ones, and what makes them hard to compare."""
    from lmmkit.evaluate.answers.published import COLUMNS, caveats_of, published_table

    if name in COLUMNS:
        print_table(aligned(f"{made.title}, published", published_table(name, figures, made.scale, label)))
    for caveat in caveats_of(name, made.caveats):
        print_text(f"{name}: {caveat}")


def aligned(title: str, lines: Sequence[Sequence[str]]) -> Table:
    """Returns the lines as a table; the first has the headings. Numbers are aligned to the right."""
    table = Table(title=title, title_justify="left")
    for i, heading in enumerate(lines[0]):
        table.add_column(heading, justify="right" if i else "left")
    for line in lines[1:]:
        table.add_row(*line)
    return table
