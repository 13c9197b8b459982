"""python benches/summary.py RESULT.json: every ratio beside its gate; exit 1 where one is missed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table


def main(path: Path) -> int:
    """Prints the table. A gate is passed when the near end of the interval beats it."""
    table = Table(title=str(path), title_justify="left")
    for column in ("case", "ratio", "95 %", "gate", "target", "result", "peer"):
        table.add_column(column, justify="right" if column in ("ratio", "95 %", "gate", "target") else "left")
    missed = 0
    for case in json.loads(path.read_text())["benchmarks"]:
        info = case["extra_info"]
        passed = info["low"] >= info["gate"]
        missed += not passed
        word = "target" if info["low"] >= info["target"] else "pass" if passed else "MISSED"
        interval = f"{info['low']:.2f} to {info['high']:.2f}"
        table.add_row(
            case["name"], f"{info['ratio']:.2f}", interval, f"{info['gate']:.2f}", f"{info['target']:.2f}", word,
            info["peer"],
        )  # fmt: skip
    Console(width=120).print(table)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
