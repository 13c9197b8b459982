"""The observer `trackio`: all figures reach trackio's own files, without a network, and a resume continues the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from tests.conftest import PLAIN

pytest.importorskip("trackio", reason="the extra `trackio` is not installed")

SHORT = PLAIN.replace("steps: 6", "steps: 2")

SCRIPT = """
import contextlib, json, socket, sys

def refuse(self, address, *rest):
    raise AssertionError(f"connects to {address}")

socket.socket.connect = refuse
import lmmkit
from lmmkit.recipe import read_text

root, out = sys.argv[1:]
recipe = read_text(sys.stdin.read(), root=root, overrides=["output.observers=[trackio]"])
found = []
for resume in (False, True):
    run = lmmkit.train(recipe, out=out, resume=resume).run
    import trackio
    with contextlib.redirect_stdout(sys.stderr):
        trackio.finish()
    from trackio.sqlite_storage import SQLiteStorage
    names = SQLiteStorage.get_runs("lmmkit")
    logs = SQLiteStorage.get_logs("lmmkit", names[0])
    found.append({"runs": names, "logs": logs, "lines": run.read_metrics()})
json.dump(found, sys.stdout)
"""


def train_and_resume(scenes, out, tmp_path):
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HOME": str(tmp_path / "hf")}
    words = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(scenes), str(out)]
    done = subprocess.run(words, input=SHORT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # nothing else is printed there


def test_every_figure_is_stored_and_a_resume_continues_the_run(scenes, tmp_path):
    found, again = train_and_resume(scenes, tmp_path / "night" / "a", tmp_path)
    assert found["runs"] == ["night-a"]
    assert [log["step"] for log in found["logs"]] == [line["step"] for line in found["lines"]] == [1, 2, 3, 4]
    for log, line in zip(found["logs"], found["lines"], strict=True):
        floats = {name: value for name, value in line.items() if isinstance(value, float)}
        assert "loss" in floats and {name: log[name] for name in floats} == pytest.approx(floats)
    assert again["runs"] == ["night-a"] and len(again["logs"]) == 4, "nothing was left to do"
