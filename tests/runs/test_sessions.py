"""Each process that trains a run adds a session to run.json; a resume keeps those before."""

from __future__ import annotations

import os
from datetime import datetime

import pytest

import lmmkit
from lmmkit.errors import MachineError
from lmmkit.errors.training import RUN_CANNOT_WRITE
from lmmkit.runs import sessions
from lmmkit.runs.files import read_json, write_json_atomic
from lmmkit.runs.run_folder import RunFolder
from lmmkit.runs.sessions import command_line, session, sessions_in

HERE = {"device": "cpu", "threads": 1, "processes": 1}


@pytest.fixture
def run(tmp_path) -> RunFolder:
    write_json_atomic(tmp_path / "run.json", {"format": 1, "plans": {"a": "1"}})
    return RunFolder(tmp_path)


def test_a_session_is_complete_when_the_block_ends(run):
    with session(run, **HERE) as note:
        (begun,) = sessions_in(read_json(run.run_json))
        assert begun["ended"] is None and begun["cpu_seconds"] is None, "it is still running"
        note(parameters=12, trained={"one": 3})
        note(trained={"two": 4})
        spent = sum(os.times()[:4])
    found = read_json(run.run_json)
    (one,) = sessions_in(found)
    assert found["format"] == 1 and found["plans"] == {"a": "1"}
    assert found["parameters"] == 12 and found["trained"] == {"one": 3, "two": 4}
    assert one["version"] == lmmkit.__version__ and (one["device"], one["threads"], one["processes"]) == (
        "cpu",
        1,
        1,
    )
    assert datetime.fromisoformat(one["started"]) <= datetime.fromisoformat(one["ended"])
    assert spent - 1e-6 <= one["cpu_seconds"] <= spent + 5


def test_a_session_that_fails_has_an_end_and_the_error_remains(run):
    with pytest.raises(ZeroDivisionError), session(run, **HERE):
        _ = 1 // 0
    assert sessions_in(read_json(run.run_json))[0]["ended"] is not None


def test_a_full_disk_at_the_end_does_not_replace_the_error(run, monkeypatch, capsys):
    def full(path, value):
        raise MachineError(RUN_CANNOT_WRITE.at("run.json", got="no space"))

    with pytest.raises(ZeroDivisionError), session(run, **HERE):
        monkeypatch.setattr(sessions, "write_json_atomic", full)
        _ = 1 // 0
    assert "no space" in capsys.readouterr().err


@pytest.mark.parametrize("found", ["text", 3, {"a": 1}, ["x", 4], None])
def test_other_content_is_no_session(run, found):
    write_json_atomic(run.run_json, {"sessions": found})
    with session(run, **HERE):
        pass
    assert len(sessions_in(read_json(run.run_json))) == 1


def test_the_command_can_be_pasted(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/x/lmmkit/__main__.py", "train", "a b.yaml", "--out", "runs/a"])
    assert command_line() == "lmmkit train 'a b.yaml' --out runs/a"
