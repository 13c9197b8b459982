"""Checkpoints under kills, damage and full disks: never lost, never wrong, never silent."""

import json
import os
import random
import resource
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lmmkit.errors import MachineError, UserError
from lmmkit.runs.files import file_crc32, fsync
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import disk_space, manifest, read, write
from lmmkit.training.checkpoint.rng import rng_state, set_rng_state
from lmmkit.training.checkpoint.tensor_files import rank_slices
from lmmkit.training.distributed.process_group import ALONE
from tests.support.disk_waits import record_waits

CRASHED = 77


def tensors_of(step):
    return {
        "w": torch.full((4, 5), float(step)),
        "half": torch.arange(6).to(torch.bfloat16) + step,
        "scalar": torch.tensor(step),
        "none": torch.zeros(0, 3),
        "bytes": torch.tensor([True, False]),
        "turned": torch.arange(6.0).reshape(2, 3).t(),
    }


def save(run, step, keep=2):
    state = {"step": step, "nested": {"worst": float("inf")}}
    return write.put(run, step, rank_slices(tensors_of(step), ALONE), state, keep=keep, rng=rng_state())


def assert_exact(path):
    found = read.load(path)
    want = tensors_of(found.step)
    assert found.state["step"] == found.step
    assert found.tensors.keys() == want.keys()
    for key, tensor in want.items():
        assert found.tensors[key].dtype == tensor.dtype
        assert torch.equal(found.tensors[key], tensor), key
    return found.step


def sound_steps(run):
    return [read.step_of(p) for p in read.steps(run) if not manifest.verify(p)]


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    return run


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch):
    """Several shards; no waiting for the disk, which only a power cut would tell apart."""
    monkeypatch.setattr(write, "SHARD_BYTES", 90)
    monkeypatch.setattr(write, "fsync", lambda path: os.stat(path))


def crash_at(number):
    """Returns an io_point that ends the process at its n-th call."""
    left = iter(range(number))

    def point(name):
        if next(left, None) is None:
            os._exit(CRASHED)

    return point


def test_what_is_saved_comes_back(run, monkeypatch):
    monkeypatch.setattr(write, "fsync", fsync)
    torch.manual_seed(1)
    state = {"list": [1, 2.5, None], "text": "x", "worst": float("-inf")}
    path = write.put(run, 7, rank_slices(tensors_of(7), ALONE), state, keep=2, rng=rng_state())
    drawn = torch.rand(5)
    assert path == run.checkpoints / "step-00000007" == read.newest(run).path
    found = read.load(path, spoiled=())
    assert found.state == state
    assert all(torch.equal(v, found.tensors[k]) for k, v in tensors_of(7).items())
    assert len(list(path.glob("shard-*"))) > 1
    set_rng_state(found.rng)
    assert torch.equal(torch.rand(5), drawn)
    assert not list(run.checkpoints.glob(".*"))


def test_no_tensors_at_all(run):
    path = write.put(run, 0, rank_slices({}, ALONE), {}, keep=2, rng=rng_state())
    assert read.load(path).tensors == {}


def test_bad_arguments_touch_nothing(run):
    for wrong in ({"keep": 1}, {"step": -1}, {"step": 10**8}):
        options = {"keep": 2, "step": 1} | wrong
        step, keep = options["step"], options["keep"]
        with pytest.raises(ValueError):
            write.put(run, step, rank_slices({}, ALONE), {}, keep=keep, rng=rng_state())
    with pytest.raises(TypeError, match=r"state\.groups\[0\]"):
        write.put(run, 1, rank_slices({}, ALONE), {"groups": [{0: 1}]}, keep=2, rng=rng_state())
    with pytest.raises(TypeError):
        write.put(run, 1, rank_slices({}, ALONE), {"x": object()}, keep=2, rng=rng_state())
    assert not run.checkpoints.exists()


def test_order_of_writes(run, monkeypatch):
    save(run, 1)
    save(run, 2)
    names = []
    monkeypatch.setattr(write, "io_point", names.append)
    save(run, 3)
    files = [f"shard-{n:05d}.safetensors" for n in range(len(list(run.path.rglob("*3/shard-*"))))]
    files += ["rng-rank00000.safetensors", "state.json", "manifest.json"]
    pairs = [f"{verb} {file}" for file in files for verb in ("write", "sync")]
    tail = ["sync the folder", "publish", "sync the names", "sync the run"]
    assert names == ["make the folder", *pairs, *tail, "prune", "sync the names", "delete"]


def test_a_save_waits_for_the_disk_at_each_sync(run, monkeypatch):
    """Checks that all else is on the disk before the manifest is, which makes it count."""
    events = record_waits(monkeypatch, write)
    slices = rank_slices(tensors_of(3), ALONE, frozen=("half",))
    path = write.put(run, 3, slices, {}, keep=2, rng=rng_state())
    (frozen,) = run.checkpoints.glob("frozen-*")
    staging = run.checkpoints / frozen.name.replace("frozen-", ".tmp-")
    shards = [staging / shard.name for shard in sorted(path.glob("shard-*"))]
    files = [*sorted(frozen.iterdir()), *shards, staging / "rng-rank00000.safetensors"]
    last = [staging / "state.json", staging / "manifest.json"]
    assert len(files) == 2 + 2 + 1
    assert [pair for pair in pairwise(events) if isinstance(pair[1], Path)] == [
        *((f"sync {file.name}", file) for file in files),
        ("sync the folder of frozen weights", frozen), (frozen, run.checkpoints),
        *((f"sync {file.name}", file) for file in last),
        ("sync the folder", staging), ("sync the names", run.checkpoints), ("sync the run", run.path),
    ]  # fmt: skip


def test_prune_keeps_the_newest_complete(run):
    for step in (1, 2, 3):
        save(run, step)
    assert sound_steps(run) == [3, 2]
    (run.checkpoints / "step-00000003" / "state.json").unlink()
    save(run, 4)
    assert sound_steps(run) == [4, 2]  # the damaged one counts for nothing
    save(run, 5, keep=3)
    assert sound_steps(run) == [5, 4, 2]


def test_crash_at_every_point_of_a_save(run, forked, monkeypatch):
    save(run, 1)
    save(run, 2)
    pristine = run.path.with_name("pristine")
    shutil.copytree(run.path, pristine)
    points = []
    with monkeypatch.context() as recording:
        recording.setattr(write, "io_point", points.append)
        save(run, 3)

    def crash(number):
        monkeypatch.setattr(write, "io_point", crash_at(number))
        save(run, 3)

    code, number, published = CRASHED, 0, 0
    while code == CRASHED:
        shutil.rmtree(run.path)
        shutil.copytree(pristine, run.path)
        code = forked(lambda number=number: crash(number))
        steps = sound_steps(run)
        assert len(steps) >= 2, number
        assert assert_exact(read.newest(run).path) == steps[0] >= 2
        write.sweep(run)
        assert not list(run.checkpoints.glob(".*")), number
        published += 3 in sound_steps(run)
        save(run, 4)
        assert assert_exact(read.newest(run).path) == 4
        number += 1
    assert code == 0
    assert number == len(points) + 1
    assert published == number - points.index("sync manifest.json")


def test_crash_at_every_point_of_saving_a_step_again(run, forked, monkeypatch):
    save(run, 9)
    pristine = run.path.with_name("pristine")
    shutil.copytree(run.path, pristine)

    def crash(number):
        monkeypatch.setattr(write, "io_point", crash_at(number))
        save(run, 9)

    def crash_in_sweep(number):
        monkeypatch.setattr(write, "io_point", crash_at(number))
        write.sweep(run)

    code, number = CRASHED, 0
    while code == CRASHED:
        shutil.rmtree(run.path)
        shutil.copytree(pristine, run.path)
        code = forked(lambda number=number: crash(number))
        for point in range(4):  # the next start dies as well, a little later each time
            if forked(lambda point=point: crash_in_sweep(point)) == 0:
                break
        write.sweep(run)
        assert assert_exact(read.newest(run).path) == 9, number
        assert not list(run.checkpoints.glob(".*")), number
        number += 1
    assert code == 0


def test_kill_at_random_moments(run, fork):
    save(run, 1)
    rng = random.Random(0)

    ready, tell = os.pipe()

    def train(start):
        for step in range(start, 10**6):
            save(run, step)
            if step == start:
                os.write(tell, b"x")

    newest = 1
    for _ in range(20):
        pid = fork(lambda start=newest + 1: train(start))
        os.read(ready, 1)  # a loaded machine may take long to begin
        time.sleep(rng.uniform(0.005, 0.05))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = assert_exact(read.newest(run).path)
        assert found >= newest
        write.sweep(run)
        newest = assert_exact(read.newest(run).path)
    assert newest > 1
    assert not list(run.checkpoints.glob(".*"))


def damage(folder, kind, rng):
    """Harms one file of a checkpoint, chosen by `rng`; says which."""
    file = rng.choice(sorted(p for p in folder.iterdir() if p.stat().st_size))
    content = bytearray(file.read_bytes())
    if kind == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    elif kind == "truncate":
        file.write_bytes(content[: rng.randrange(len(content))])
    elif kind == "missing":
        file.unlink()
    elif kind == "longer":
        file.write_bytes(content + b"\n")
    else:
        file = folder / "shard-00099.safetensors"
        shutil.copy(folder / "shard-00000.safetensors", file)
    return file.name


@pytest.mark.parametrize("kind", ["flip", "truncate", "missing", "longer", "extra"])
def test_all_damage_is_found(run, kind):
    save(run, 1)
    newest = save(run, 2)
    good = run.path.with_name("good")
    shutil.copytree(newest, good)
    rng = random.Random(kind)
    for _ in range(60 if kind == "flip" else 15):
        name = damage(newest, kind, rng)
        with pytest.raises(UserError):
            read.load(newest)
        path, notices, _ = read.newest(run)
        assert assert_exact(path) == 1
        assert any(name in problem.where for problem in notices)
        shutil.rmtree(newest)
        shutil.copytree(good, newest)
    assert assert_exact(read.newest(run).path) == 2


def test_every_bit_of_the_manifest_counts(run):
    folder = save(run, 1)
    path = folder / manifest.FILE_NAME
    content = path.read_bytes()
    for number in range(0, 8 * len(content), 23):
        changed = bytearray(content)
        changed[number // 8] ^= 1 << number % 8
        path.write_bytes(changed)
        assert manifest.verify(folder, contents=False), number


def test_a_damaged_step_is_reported_and_can_be_saved_again(run, caplog):
    save(run, 1)
    (save(run, 2) / "state.json").write_text("{}")
    assert read.step_of(read.newest(run).path) == 1
    assert "step-00000002/state.json" in caplog.text
    save(run, 2)
    assert assert_exact(read.newest(run).path) == 2


def test_all_damaged_is_an_error_not_a_fresh_start(run):
    assert read.newest(run).path is None
    (save(run, 1) / "manifest.json").unlink()
    with pytest.raises(UserError, match="checkpoint/damaged"):
        read.newest(run)


def test_a_forged_manifest_leads_nowhere(run):
    folder = save(run, 1)
    body = manifest.read(folder)
    secret = run.path / "secret"
    secret.write_text("x")
    crc = file_crc32(secret)
    for forged in ({"files": {"../../secret": [1, crc]}}, {"files": [1]}, {"files": {"a": "b"}}):
        signed = body | forged
        signed["crc32"] = manifest.zlib.crc32(manifest._encode(signed))
        (folder / manifest.FILE_NAME).write_bytes(manifest._encode(signed))
        with pytest.raises(UserError):
            read.load(folder)
    (folder / manifest.FILE_NAME).write_bytes(b"[" * 100_000)
    with pytest.raises(UserError):
        read.load(folder)


def test_other_schema_names_the_writer(run):
    folder = save(run, 1)
    body = manifest.read(folder) | {"schema": 99}
    body["crc32"] = manifest.zlib.crc32(manifest._encode(body))
    (folder / manifest.FILE_NAME).write_bytes(manifest._encode(body))
    with pytest.raises(UserError, match=r"schema 99.*torch"):
        read.load(folder)


def test_mismatches_name_every_tensor(run):
    folder = save(run, 1)
    want = tensors_of(1)
    assert manifest.mismatches(folder, want) == ()
    want["w"] = want["w"].half()
    want["half"] = want["half"][:2]
    want["new"] = want.pop("none")
    found = [(p.where.split("`")[1], p.got, p.expected) for p in manifest.mismatches(folder, want)]
    assert found == [
        ("half", "bfloat16 [6]", "bfloat16 [2]"),
        ("new", "no tensor", "float32 [0, 3]"),
        ("none", "float32 [0, 3]", "no tensor"),
        ("w", "float32 [4, 5]", "float16 [4, 5]"),
    ]


def test_decoys_and_leftovers(run):
    save(run, 1)
    folder = run.checkpoints
    decoys = ["step-12.bak", "step-00000012.bak", "xstep-00000013", "step-000000014", "step-15"]
    decoys += ["Step-00000016", "step-0000001x", ".tmp-foo", "step-00000017-old", "notes"]
    for name in decoys:
        shutil.copytree(folder / "step-00000001", folder / name)
    (folder / "step-00000018").write_text("a file")
    (folder / "tmp.txt").write_text("a file")
    for name in (".tmp-00000002-abcdef01", ".trash-step-00000001-abcdef01"):
        (folder / name).mkdir()
        (folder / name / "shard-00000.safetensors").write_text("half")
    (folder / ".trash-file").write_text("x")
    assert assert_exact(read.newest(run).path) == 1
    notes = "\n".join(write.sweep(run))
    assert notes.count("removed") == 3
    assert notes.count("ignored") == len(decoys) + 2
    assert {p.name for p in folder.iterdir()} == {
        "step-00000001", "step-00000018", "tmp.txt", *decoys,
    }  # fmt: skip
    save(run, 2)
    save(run, 3)
    assert sound_steps(run) == [3, 2]
    assert all((folder / name).is_dir() for name in decoys)


def test_sweep_finishes_a_save_that_lacks_only_its_name(run):
    save(run, 1).rename(run.checkpoints / ".tmp-00000001-0a")
    assert read.newest(run).path is None
    assert "finished step-00000001" in write.sweep(run)[0]
    assert assert_exact(read.newest(run).path) == 1
    assert write.sweep(run) == ()


def test_sweep_of_a_run_without_checkpoints(run):
    assert write.sweep(run) == ()


def test_disk_full_loses_nothing(run, forked, capfd):
    save(run, 1)
    big = {"w": torch.zeros(50_000)}

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write.put(run, 2, rank_slices(big, ALONE), {}, keep=2, rng=rng_state())
        except MachineError as error:
            print(error)
            return error.exit_code

    assert forked(fill) == 3
    assert assert_exact(read.newest(run).path) == 1
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-00000001"]


def test_disk_full_message(run, monkeypatch):
    save(run, 1)
    monkeypatch.setattr(disk_space, "free", lambda folder: 10)
    with pytest.raises(MachineError) as caught:
        save(run, 2)
    text = str(caught.value)
    assert "step-00000002" in text and "bytes needed, 10 free" in text and "No space" in text
    monkeypatch.undo()
    assert assert_exact(read.newest(run).path) == 1


@pytest.mark.parametrize("fails", ["publish", "sync the folder", "write state.json"])
def test_failing_io_keeps_the_step_that_was_there(run, monkeypatch, fails):
    save(run, 1)

    def point(name):
        if name == fails:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "io_point", point)
    for step in (1, 2):
        with pytest.raises(MachineError, match="No space"):
            save(run, step)
        assert [p.name for p in run.checkpoints.iterdir()] == ["step-00000001"]
    monkeypatch.undo()
    assert assert_exact(read.newest(run).path) == 1


def test_failing_prune_fails_nothing(run, monkeypatch, caplog):
    save(run, 1)
    save(run, 2)

    def point(name):
        if name == "prune":
            raise OSError(13, "Permission denied")

    monkeypatch.setattr(write, "io_point", point)
    assert assert_exact(save(run, 3)) == 3
    assert "could not prune" in caplog.text


def test_manifest_is_readable(run):
    body = json.loads((save(run, 1) / manifest.FILE_NAME).read_text())
    assert body["tensors"]["half"] == ["bfloat16", [6]]
    assert body["versions"]["torch"].startswith("2.")
