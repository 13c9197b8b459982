"""The tables of the quickstart, from the files of its run folders."""

from __future__ import annotations

import json

from rich.console import Console

from lmmkit.commands.support import common
from lmmkit.report.quickstart import summarise, tables, write_summary

ANSWERS = {
    f"accuracy{control}{detail}": {"value": 0.8, "low": 0.78, "high": 0.82, "chance": 0.257, "n": 1500}
    for control in ("", "_blank", "_swapped")
    for detail in ("", "/count", "/presence")
}
METRIC = {"value": 0.97, "low": None, "high": None, "chance": 0.04, "n": 500}


def test_the_tables_show_both_recipes_in_80_columns(tmp_path, monkeypatch):
    terms = {"llava": {}, "direct": {"image_order/accuracy": METRIC, "guided_loss/mass": METRIC}}
    for name, figures in terms.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "seconds": 2.0}\n')
        results = {"answers": {**ANSWERS, "seconds": 1.0}, "terms": figures}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    summary = summarise(tmp_path, list(terms), wall_seconds=1.0)
    write_summary(tmp_path, summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["machine"]["processor"] and summary["machine"]["torch"]
    for width in (60, 120):
        narrow = Console(width=width, record=True, soft_wrap=True, markup=False)
        monkeypatch.setattr(common, "out", narrow)
        for table in tables(tmp_path, summary):
            common.print_table(table)
        found = narrow.export_text()
        assert max(map(len, found.splitlines())) <= width
        assert all(
            word in found for word in ("restored", "(78.0-82.0)", "presence", "other", "direct", "1500")
        ), found
    console = Console(width=80, record=True)
    for table in tables(tmp_path, summary):
        console.print(table)
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    lines = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in text.splitlines() if "│" in line}
    assert [cell.strip() for cell in lines["exact match, blank image"]] == ["80.0 (78.0-82.0)"] * 2
    assert [cell.strip() for cell in lines["majority answer"]] == ["25.7", "25.7"]
    assert [cell.strip() for cell in lines["image order restored"]] == ["-", "97.0 (chance 4.0)"]
    assert [cell.strip() for cell in lines["count"]] == ["80.0"] * 6 + ["1500"]
