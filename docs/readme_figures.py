"""Writes README's table of expected results from docs/quickstart.json, which the quickstart wrote.

lmmkit quickstart --out mine
python docs/readme_figures.py mine/summary.json   # copies the file to docs/quickstart.json first
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from lmmkit.report.quickstart import rows

DOCS = Path(__file__).resolve().parent
SUMMARY, README = DOCS / "quickstart.json", DOCS.parent / "README.md"
BEGIN, END = "<!-- docs/readme_figures.py begins -->\n", "<!-- docs/readme_figures.py ends -->\n"


def section(summary: dict) -> str:
    """Returns the sentence about the machine, and the table."""
    machine, names = summary["machine"], list(summary["recipes"])
    words = (
        f"`lmmkit quickstart` of lmmkit {machine['lmmkit']} took {summary['wall_seconds'] / 60:.1f} minutes on "
        f"{machine['processors']} CPU cores ({machine['processor']}, torch {machine['torch']}, {machine['date']}):"
    )
    lines = [("", *names), ("---",) * (1 + len(names)), *rows(summary)]
    if "note" in summary:
        words += f"\n{summary['note']}"
    return f"{words}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def written(readme: str, summary: dict) -> str:
    """Returns README with the section between its marks replaced."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{section(summary)}{END}{after}"


def main() -> None:
    """Copies the summary that is named, if one is, and writes README."""
    if sys.argv[1:]:
        shutil.copyfile(sys.argv[1], SUMMARY)
    summary = json.loads(SUMMARY.read_text(encoding="utf-8"))
    README.write_text(written(README.read_text(encoding="utf-8"), summary), encoding="utf-8")


if __name__ == "__main__":
    main()
