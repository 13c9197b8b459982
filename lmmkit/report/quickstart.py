"""The summary and tables of the quickstart, from the run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from lmmkit.runs.files import write_json_atomic
from lmmkit.runs.run_folder import RunFolder


def summarise(folder: Path, names: Sequence[str], *, wall_seconds: float) -> dict:
    """Writes and returns `summary.json`: wall time, and each recipe's figures side by side."""
    summary = {
        "wall_seconds": wall_seconds,
        "recipes": {name: _recipe(RunFolder(folder / name)) for name in names},
    }
    write_json_atomic(folder / "summary.json", summary)
    return summary


def _recipe(run: RunFolder) -> dict:
    results, metrics = run.read_results(), run.read_metrics()
    answers, terms = results["answers"], results["terms"]
    order = terms.get("image_order", {}).get("metrics", {}).get("accuracy")
    restored = results.get("restore", {}).get("text_order")
    mass = terms["guided_loss"]["metrics"]["mass"] if "guided_loss" in terms else None
    return {
        **{key: answers[key] for key in ("accuracy", "accuracy_blank", "accuracy_swapped")},
        "majority": answers["majority"],
        "image_order": order,
        "text_order": restored,
        "image_mass": None if mass is None else {key: mass[key] for key in ("value", "chance")},
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
    for label, cell in _ROWS.items():
        main.add_row(label, *(cell(r) for r in recipes.values()))
    return [main, _by_type(folder, list(recipes))]


def _figure(key: str):
    return lambda r: (
        "-"
        if r[key] is None
        else f"{_percent(r[key]['value'])} ({_percent(r[key]['low'])}-{_percent(r[key]['high'])})"
    )


def _beside_chance(key: str):
    return lambda r: (
        "-" if r[key] is None else f"{_percent(r[key]['value'])} (chance {_percent(r[key]['chance'])})"
    )


_ROWS = {
    "exact match, its own image (95 %)": _figure("accuracy"),
    "exact match, blank image": _figure("accuracy_blank"),
    "exact match, another scene's image": _figure("accuracy_swapped"),
    "majority answer": lambda r: _percent(r["majority"]),
    "image order restored": _beside_chance("image_order"),
    "sentences restored, after stage 1": _beside_chance("text_order"),
    "attention on the image": _beside_chance("image_mass"),
    "optimizer steps": lambda r: str(r["steps"]),
    "training seconds": lambda r: f"{r['train_seconds']:.0f}",
}


def _by_type(folder: Path, names: Sequence[str]) -> Table:
    table = Table(title="Exact match by question type, in percent", title_justify="left")
    table.add_column("type", no_wrap=True)
    by_name = {name: RunFolder(folder / name).read_results()["answers"]["by_type"] for name in names}
    for name in names:
        for condition in ("image", "blank", "swapped"):
            table.add_column(f"{name}\n{condition}", justify="right")
    table.add_column("n", justify="right")
    for kind, first in by_name[names[0]].items():
        cells = [
            _percent(by_name[name][kind][key]["value"])
            for name in names
            for key in ("accuracy", "accuracy_blank", "accuracy_swapped")
        ]
        table.add_row(kind, *cells, str(first["accuracy"]["n"]))
    return table


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
