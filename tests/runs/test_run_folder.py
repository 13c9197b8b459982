"""The run folder: who may take it, and what a reader gets of it."""

import os
import signal
import time

import pytest

from lmmkit.errors import MachineError, UserError
from lmmkit.runs import files
from lmmkit.runs.files import plain, read_json, write_json_atomic
from lmmkit.runs.run_folder import RunFolder
from lmmkit.runs.run_lock import lock


@pytest.fixture
def run(tmp_path):
    run = RunFolder.create(tmp_path / "out" / "run", resume=False)
    write_json_atomic(run.run_json, {"seed": 1})
    return run


def codes(error):
    return [problem.code for problem in error.value.problems]


def test_names(tmp_path):
    run = RunFolder(str(tmp_path))
    assert run.path == tmp_path
    assert run.model("finetune") == tmp_path / "model" / "finetune"
    files = [run.recipe, run.resolved, run.plan, run.run_json, run.lock, run.metrics]
    files += [run.anomalies, run.tb, run.checkpoints, run.results]
    assert [p.name for p in files] == [
        "recipe.yaml", "recipe.resolved.yaml", "plan.txt", "run.json", "lock", "metrics.jsonl",
        "anomalies.jsonl", "tb", "checkpoints", "results.json",
    ]  # fmt: skip


def test_a_new_run_wants_an_empty_folder(run, tmp_path):
    with pytest.raises(UserError, match=r"--resume.*--out") as error:
        RunFolder.create(run.path, resume=False)
    assert codes(error) == ["run/exists"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "recipe.yaml").touch()
    with pytest.raises(UserError, match="--out") as error:
        RunFolder.create(tmp_path / "photos", resume=False)
    assert codes(error) == ["run/not-empty"]
    (tmp_path / "empty").mkdir()
    assert RunFolder.create(tmp_path / "empty", resume=False).path.is_dir()


def test_resume_wants_a_run(run, tmp_path):
    assert RunFolder.create(run.path, resume=True) == run
    for name in ("nowhere", "photos"):
        with pytest.raises(UserError) as error:
            RunFolder.create(tmp_path / name, resume=True)
        assert codes(error) == ["run/not-a-run"]
        (tmp_path / "photos").mkdir(exist_ok=True)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_start_that_died_before_it_was_a_run(tmp_path, resume):
    for name in ("lock", "recipe.yaml", "plan.txt", ".run.json.123.tmp"):
        (tmp_path / name).touch()
    assert RunFolder.create(tmp_path, resume=resume).path == tmp_path


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        RunFolder.create(tmp_path / "file", resume=False)
    assert codes(error) == ["run/not-a-folder"]
    with pytest.raises((UserError, MachineError)):
        RunFolder.create(tmp_path / "file" / "deeper", resume=False)


def test_readers(run, tmp_path):
    assert RunFolder.open(run.path) == run
    assert run.read_metrics() == []
    run.metrics.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert [record["step"] for record in run.read_metrics()] == [1, 2]
    with pytest.raises(UserError, match="lmmkit eval"):
        run.read_results()
    write_json_atomic(run.results, {"pope": {"accuracy": 0.5, "chance": float("nan")}})
    assert run.read_results() == {"pope": {"accuracy": 0.5, "chance": None}}
    other = RunFolder(tmp_path)
    for read in (other.read_metrics, other.read_results, lambda: RunFolder.open(tmp_path)):
        with pytest.raises(UserError) as error:
            read()
        assert codes(error) == ["run/not-a-run"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, "\udcff"])
def test_damaged_json(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as error:
        read_json(path)
    assert codes(error) == ["run/damaged"]


def test_write_is_all_or_nothing(run, monkeypatch):
    def fail(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "fsync", fail)
    with pytest.raises(MachineError, match="No space"):
        write_json_atomic(run.run_json, {"seed": 2})
    assert read_json(run.run_json) == {"seed": 1}
    assert os.listdir(run.path) == ["run.json"]


def test_plain_refuses_what_it_does_not_know(tmp_path):
    assert plain({"a": (1, True, tmp_path)}) == {"a": [1, True, str(tmp_path)]}
    with pytest.raises(TypeError):
        plain({"a": object()})


def fork(body):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(20)
        code = body() or 0
    finally:
        os._exit(code)


def status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_one_owner(run):
    ready, tell = os.pipe()
    go, release = os.pipe()

    def own():
        with lock(run):
            os.write(tell, b"x")
            os.read(go, 1)

    pid = fork(own)
    os.read(ready, 1)
    with (
        pytest.raises(UserError, match=rf"{pid}.*{os.uname().nodename}.*--resume") as error,
        lock(run),
    ):
        pass
    assert codes(error) == ["run/locked"]
    os.write(release, b"x")
    assert status(pid) == 0
    for _ in range(3):
        with lock(run):
            assert read_json(run.lock)["pid"] == os.getpid()


def test_an_owner_that_has_not_signed_yet(run):
    with lock(run):
        run.lock.write_text("")
        with pytest.raises(UserError, match="unknown"), lock(run):
            pass


@pytest.mark.parametrize("starts", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_owner_leaves_no_lock_behind(run, starts):
    for _ in range(starts):
        ready, tell = os.pipe()

        def own(tell=tell):
            with lock(run):
                os.write(tell, b"x")
                time.sleep(10)

        pid = fork(own)
        os.read(ready, 1)
        with pytest.raises(UserError, match=rf"process {pid} on "), lock(run):
            pass
        os.kill(pid, signal.SIGKILL)
        assert status(pid) == -signal.SIGKILL
        os.close(ready)
        os.close(tell)
        with lock(run):
            pass


def test_an_orphaned_worker_does_not_hold_the_lock(run):
    go, release = os.pipe()
    with lock(run):
        worker = fork(lambda: os.read(go, 1) and None)
        # The child's copy is closed, and ours still counts.
        other = fork(lambda: _is_taken(run))
        assert status(other) == 0
    with lock(run):
        pass
    os.write(release, b"x")
    assert status(worker) == 0


def _is_taken(run):
    try:
        with lock(run):
            return 1
    except UserError:
        return 0


def test_no_folder_no_lock(tmp_path):
    with pytest.raises(MachineError), lock(RunFolder(tmp_path / "nowhere")):
        pass
