"""The summary and tables of the quickstart, from the run folders."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib import metadata
from pathlib import Path

from rich.table import Table

from lmmkit.evaluate.task import Figure, percent
from lmmkit.runs.files import write_json_atomic
from lmmkit.runs.run_folder import RunFolder

REPORT = "report.html"
CONDITIONS = ("accuracy", "accuracy_blank", "accuracy_swapped")  # the image is correct, blank, another's


def summarise(folder: Path, names: Sequence[str], *, wall_seconds: float) -> dict:
    """Returns the summary: the machine, wall time, the name of the page, and each recipe's figures side by side."""
    return {
        "machine": _machine(),
        "wall_seconds": wall_seconds,
        "report": REPORT,
        "recipes": {name: _recipe(RunFolder(folder / name)) for name in names},
    }


def write_summary(folder: Path, summary: dict) -> None:
    """Writes the summary to `summary.json`, from which README's figures are made (docs/readme_figures.py)."""
    write_json_atomic(folder / "summary.json", summary)


def _machine() -> dict:
    """Returns what the time and the last digits of the figures depend on."""
    versions = {name: metadata.version(name) for name in ("lmmkit", "torch")}
    return {
        **versions,
        "processors": os.cpu_count(),
        "processor": _processor(),
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    """Returns the name of the processor, as Linux knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _recipe(run: RunFolder) -> dict:
    results, metrics = run.read_results(), run.read_metrics()
    answers, terms = results["answers"], results["terms"]
    return {
        **{key: answers[key] for key in CONDITIONS},
        "image_order": terms.get("image_order/accuracy"),
        "text_order": results.get("restore", {}).get("text_order"),
        "image_mass": terms.get("guided_loss/mass"),
        "steps": len(metrics),
        "train_seconds": sum(m["seconds"] for m in metrics),
    }


def tables(folder: Path, summary: dict) -> list[Table]:
    """Returns the comparison, and the accuracy by question type; both fit 80 columns."""
    recipes = summary["recipes"]
    main = Table(title="Held-out scenes, equal optimizer steps", title_justify="left")
    main.add_column("")
    for name in recipes:
        main.add_column(name, justify="right")
    for line in rows(summary):
        main.add_row(*line)
    return [main, _by_type(folder, list(recipes))]


def rows(summary: dict) -> list[tuple[str, ...]]:
    """Returns the lines of the comparison: a label, then a cell for each recipe."""
    return [(label, *map(cell, summary["recipes"].values())) for label, cell in _LINES.items()]


def _accuracy(key: str):
    return lambda recipe: Figure(**recipe[key]).in_percent()


def _next_to_chance(key: str):
    def cell(recipe: dict) -> str:
        if recipe[key] is None:
            return "-"
        figure = Figure(**recipe[key])
        return f"{figure.in_percent()} (chance {percent(figure.chance)})"

    return cell


_LINES = {
    "exact match, correct image (95 %)": _accuracy("accuracy"),
    "exact match, blank image": _accuracy("accuracy_blank"),
    "exact match, another scene's image": _accuracy("accuracy_swapped"),
    "majority answer": lambda r: percent(r["accuracy"]["chance"]),
    "image order restored": _next_to_chance("image_order"),
    "sentences restored, after stage 1": _next_to_chance("text_order"),
    "attention on the image": _next_to_chance("image_mass"),
    "optimizer steps": lambda r: str(r["steps"]),
    "training seconds": lambda r: f"{r['train_seconds']:.0f}",
}


def _by_type(folder: Path, names: Sequence[str]) -> Table:
    table = Table(title="Exact match by question type, in percent", title_justify="left")
    table.add_column("type", no_wrap=True)
    answers = {name: RunFolder(folder / name).read_results()["answers"] for name in names}
    for name in names:
        for condition in ("image", "blank", "other"):
            table.add_column(f"{name}\n{condition}", justify="right")
    table.add_column("n", justify="right")
    details = [key.removeprefix("accuracy") for key in answers[names[0]] if key.startswith("accuracy/")]
    for detail in details:
        figures = [Figure(**answers[name][key + detail]) for name in names for key in CONDITIONS]
        shares = [percent(figure.value) for figure in figures]
        table.add_row(detail.removeprefix("/"), *shares, str(figures[0].n))
    return table
