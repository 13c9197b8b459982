"""Writes the tables of docs/miniature.md from docs/miniature/GRID.json, which `lmmkit ablate` wrote.

lmmkit ablate all_parts --root world --runs ablations
python docs/miniature_figures.py ablations/grids/all_parts/ablation.json   # copies it, without folders, first
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PAGE, GRIDS = DOCS / "miniature.md", DOCS / "miniature"


def marks(grid: str) -> tuple[str, str]:
    """Returns the lines before and after the table of a grid."""
    return f"<!-- miniature_figures.py: {grid} -->\n", f"<!-- {grid} ends -->\n"


def table(outcome: Mapping[str, Any]) -> str:
    """Returns the arms of a grid with their figures in percent, differences to the base, and costs."""
    names = list(outcome["measures"])
    heads = ["arm", "equal", "seeds", *names, f"{names[0]}: difference (95 %)", "p", "CPU s", "steps"]
    lines = [heads, ["---"] * len(heads)]
    for arm in outcome["arms"]:
        first = arm["measures"][names[0]]
        difference = first["difference"]
        figures = [_percent(arm["measures"][name]) for name in names]
        steps = " + ".join(f"{n:,}" for n in arm["steps"].values())
        seconds = f"{arm['cost']['cpu_seconds']:.0f}"
        runs = str(len(arm["runs"]))
        lines.append([
            arm["variant"], arm["equal"], runs, *figures, _difference(difference), _p(difference), seconds, steps,
        ])  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _percent(measure: Mapping[str, Any] | None) -> str:
    return "" if measure is None else f"{100 * measure['value']:.1f}"


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["low"], found["high"]
    interval = "" if low is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{100 * found['value']:+.1f}{interval}"


def _p(found: Mapping[str, Any] | None) -> str:
    if found is None or found["p_holm"] is None:
        return ""
    return "< 0.001" if found["p_holm"] < 0.001 else f"{found['p_holm']:.3f}"


def written(page: str) -> str:
    """Returns the page with the table of every stored grid replaced."""
    for path in sorted(GRIDS.glob("*.json")):
        begin, end = marks(path.stem)
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}{table(json.loads(path.read_text(encoding='utf-8')))}{end}{after}"
    return page


def main() -> None:
    """Copies the files that are named, without the folders of this machine, and writes the page."""
    for name in sys.argv[1:]:
        outcome = json.loads(Path(name).read_text(encoding="utf-8"))
        roots = {root: Path(root).name for root in outcome["roots"]}
        text = json.dumps(outcome, indent=1)
        for root, short in roots.items():
            text = text.replace(json.dumps(root), json.dumps(short))
        outcome = json.loads(text)
        outcome["file"] = Path(outcome["file"]).name
        for arm in outcome["arms"]:
            for run in arm["runs"]:
                del run["folder"]
        (GRIDS / f"{outcome['grid']}.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
