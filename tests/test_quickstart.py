"""The main job on a fresh machine, the fast way: stopped by Ctrl-C, and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_cli import run

FIGURE = {"value", "low", "high", "chance", "n"}
COMMAND = [sys.executable, "-m", "lmmkit", "quickstart", "--fast"]


def stopped_in_training(folder: Path) -> str:
    """Starts the quickstart, sends Ctrl-C to its process group when training has begun; returns its output."""
    process = subprocess.Popen(
        COMMAND,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    metrics = [folder / "quickstart" / name / "metrics.jsonl" for name in ("llava", "direct")]
    until = time.monotonic() + 300
    while time.monotonic() < until and not any(path.is_file() and path.stat().st_size for path in metrics):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 130, text
    return text


def test_the_fast_quickstart_continues_after_a_stop_and_leaves_its_summary(tmp_path):
    text = stopped_in_training(tmp_path)
    assert "Traceback" not in text and "stopped." in text
    assert "the data" in text and " of 14" in text and "Left: " in text and "eval direct" in text
    assert f"lmmkit quickstart --out {tmp_path / 'quickstart'} --fast" in text
    images = list((tmp_path / "quickstart" / "scenes" / "images" / "train").iterdir())
    times = {path: path.stat().st_mtime_ns for path in images}
    result = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert times == {path: path.stat().st_mtime_ns for path in images}, "the data is kept"
    assert "--resume" in result.stderr
    assert "exact match, correct image" in result.stdout
    summary = json.loads((tmp_path / "quickstart" / "summary.json").read_text())
    assert summary.keys() == {"machine", "wall_seconds", "report", "recipes"}
    assert summary["machine"].keys() == {"lmmkit", "torch", "processors", "processor", "date"}
    assert summary["recipes"].keys() == {"llava", "direct"}
    for recipe in summary["recipes"].values():
        assert recipe.keys() == {
            "accuracy", "accuracy_blank", "accuracy_swapped", "image_order", "text_order", "image_mass",
            "steps", "train_seconds",
        }  # fmt: skip
        for key in ("accuracy", "accuracy_blank", "accuracy_swapped"):
            assert recipe[key].keys() == FIGURE and recipe[key]["n"] == 90
    llava, direct = summary["recipes"]["llava"], summary["recipes"]["direct"]
    assert llava["image_order"] is llava["text_order"] is llava["image_mass"] is None
    for key in ("image_order", "text_order", "image_mass"):
        assert direct[key].keys() == FIGURE and 0 <= direct[key]["chance"] < 1
    assert llava["steps"] == direct["steps"] == 14
    assert {p.name for p in (tmp_path / "quickstart").iterdir()} == {
        "scenes",
        "llava",
        "direct",
        "logs",
        "summary.json",
        summary["report"],
    }
    page = (tmp_path / "quickstart" / summary["report"]).read_text()
    assert page.startswith("<!doctype html>") and 'role="note"' not in page, "nothing is marked"
    assert "report.html in a browser" in result.stdout


def test_a_used_folder_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    assert "quickstart/not-empty" in run("quickstart", "--out", tmp_path, code=2)


def test_a_stopped_quickstart_of_the_other_kind_is_refused(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "quickstart.json").write_text('{"fast": true, "seconds": 1.0}')
    assert "quickstart/other-kind" in run("quickstart", "--out", tmp_path, code=2)


@pytest.mark.parametrize("name", ["file/x", "x [draft] y[/q]/file/z"])
def test_a_folder_that_cannot_be_made_is_a_problem(tmp_path, name):
    above = (tmp_path / name).parent
    above.parent.mkdir(parents=True, exist_ok=True)
    above.write_text("")
    text = run("quickstart", "--out", tmp_path / name, code=3)
    assert "files/cannot-write" in text and str(tmp_path / name) in text
