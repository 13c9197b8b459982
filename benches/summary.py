"""python benches/summary.py RESULT.json...: prints every ratio with its gate; exits with 1 if one is missed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benches.pairs import verdict

SIGN = {"at least": ">=", "at most": "<="}


def main(path: Path) -> int:
    """Prints the table; returns the number of missed gates."""
    table = Table(title=str(path), title_justify="left")
    for column in ("case", "ratio", "95 %", "gate", "target", "result", "peer"):
        table.add_column(column, justify="right" if column in ("ratio", "95 %", "gate", "target") else "left")
    missed = 0
    for case in json.loads(path.read_text())["benchmarks"]:
        info = case["extra_info"]
        word = verdict(info)
        missed += word == "MISSED"
        sign = SIGN.get(info.get("sense"), "")
        limits = [
            f"{sign} {info[key]:.2f}" if info.get(key) is not None else "" for key in ("gate", "target")
        ]
        interval = f"{info['low']:.2f} to {info['high']:.2f}" if info["pairs"] > 1 else "counted"
        table.add_row(
            escape(case["name"].removeprefix("test_")),
            f"{info['ratio']:.2f}",
            interval,
            *limits,
            word,
            info["peer"],
        )
    Console(width=150).print(table)
    return missed


if __name__ == "__main__":
    sys.exit(int(sum([main(Path(name)) for name in sys.argv[1:]]) > 0))
