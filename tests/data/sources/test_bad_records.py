"""Bad records: reported, or skipped in the same way everywhere, and never too many."""

import json
import os
import random
import shutil
from dataclasses import replace

import pytest

from lmmkit.data.loader import load_steps
from lmmkit.data.sources.bad_records import BadRecord, BadRecordLog, Policy
from lmmkit.data.sources.records import open_records
from lmmkit.errors import MachineError, Problem, UserError
from lmmkit.plan.prepare import prepare
from lmmkit.runs.files import read_jsonl
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.run import train
from lmmkit.training.signals import ignore_in_worker
from lmmkit.training.stage_data import saving
from tests.conftest import PLAIN
from tests.data.sources.test_records import GOOD

SKIP = ("data.captions.bad_records=skip", "data.questions.bad_records=skip")


@pytest.fixture
def damaged(scenes, tmp_path, tiny):
    """Returns (read a recipe, names) of a copy of the scenes in which the images of ten captions are cut short."""
    folder = tmp_path / "scenes"
    shutil.copytree(scenes, folder)
    values = json.loads((folder / "pretrain.json").read_text())
    names = [values[i]["image"] for i in random.Random(0).sample(range(len(values)), 10)]
    for name in names:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    def read(*overrides):
        return replace(tiny(*overrides, text=PLAIN), root=str(folder))

    return read, names


def opened(folder, values, policy=None):
    (folder / "r.json").write_text(json.dumps(values))
    (folder / "images").mkdir(exist_ok=True)
    return open_records(
        "s", records=folder / "r.json", images=folder / "images", template="vicuna_v1", image_fit="pad",
        bad_records=policy or Policy("skip"),
    )  # fmt: skip


def test_skipped_records_are_left_out(tmp_path):
    values = [GOOD | {"id": i} for i in range(30)]
    values[3], values[20]["conversations"] = None, []
    records = opened(tmp_path, values)
    assert (len(records), records.left_out) == (28, 2)
    assert [sample.key for sample in records][2:5] == ["s:2", "s:4", "s:5"]
    assert records.where(3).endswith("(record 4)")
    assert [bad.record for bad in records.known_bad] == [3, 20]


def test_above_the_bound_a_source_is_refused(tmp_path):
    values = [GOOD] * 100 + [None] * 10
    assert len(opened(tmp_path, values)) == 100  # ten in any case
    for share, left in ((0.001, 11), (0.05, 20)):
        with pytest.raises(UserError) as error:
            opened(tmp_path, [GOOD] * 100 + [None] * left, Policy("skip", share))
        assert [p.code for p in error.value.problems][-1] == "records/too-many-bad"
        assert f"{left} bad records" in error.value.problems[-1].got
    assert len(opened(tmp_path, [GOOD] * 100 + [None] * 11, Policy("skip", 0.5))) == 100


def test_the_next_record_of_the_order_replaces_a_bad_one(damaged):
    read, names = damaged
    pipeline = prepare(read(*SKIP, "stages.pretrain.length.steps=30")).pipeline("pretrain")
    records = pipeline.sources["captions"]
    met = set()
    for i in range(30):
        step, bad = pipeline.step_and_skipped(i)
        order = [pipeline.order.at(k) for k in range(4 * i, 4 * i + 4)]
        want = []
        for source, epoch, number in order:
            while any(records[number].images[0].path.endswith(name) for name in names):
                number = pipeline.order.replacement(source, epoch, number)
            want.append(records[number].key)
        assert [key for batch in step for view, key in batch.views if view == "main"] == want
        assert sum(batch.dropped.get("bad_records", 0) for batch in step) == len(bad)
        met |= {each.record for _, each in bad}
        assert all(each.code == "image/damaged" and each.key == "image" for _, each in bad)
    assert len(met) == 10


def test_replacements_are_the_same_with_workers_and_from_any_step(damaged):
    read, _ = damaged
    pipeline = prepare(read(*SKIP, "stages.pretrain.length.steps=12")).pipeline("pretrain")
    alone = {i: [b.views for b in pipeline.step_and_skipped(i)[0]] for i in reversed(range(12))}
    skipped = []
    steps = load_steps(
        pipeline,
        2,
        12,
        workers=2,
        worker_init=ignore_in_worker,
        on_skipped=lambda i, bad: skipped.extend([i] * len(bad)),
    )
    assert {i: [b.views for b in step] for i, step in enumerate(steps, 2)} == {
        i: alone[i] for i in range(2, 12)
    }
    assert skipped and skipped == sorted(skipped)


def test_a_run_skips_them_and_lists_each_once(damaged, tmp_path):
    read, names = damaged
    recipe = read(
        *SKIP, "output.images_every=2", "stages.pretrain.length.steps=20", "stages.finetune.length.steps=2"
    )
    train(recipe, out=tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    lines = read_jsonl(run.bad_records)
    assert lines
    dropped = {
        m["step"]: m["dropped/bad_records"] for m in run.read_metrics() if m.get("dropped/bad_records")
    }
    assert sum(dropped.values()) == len(lines)
    assert {line["step"] for line in lines} == set(dropped)
    assert all(any(name in line["got"] or line["record"] >= 0 for name in names) for line in lines)
    assert {
        "source",
        "stage",
        "file",
        "line",
        "record",
        "id",
        "key",
        "code",
        "got",
        "expected",
        "hint",
    } <= lines[0].keys()


def test_a_missing_image_stops_a_run_with_record_and_path(scenes, tmp_path, tiny):
    folder = tmp_path / "scenes"
    shutil.copytree(scenes, folder)
    recipe = replace(tiny(text=PLAIN), root=str(folder))
    pipeline = prepare(recipe).pipeline("pretrain")
    _, _, number = pipeline.order.at(5)
    path = pipeline.sources["captions"][number].images[0].path
    os.remove(path)
    pipeline.step(0)
    with pytest.raises(UserError) as error:
        pipeline.step(1)
    (problem,) = error.value.problems
    assert problem.code == "image/file" and path in problem.where and f"(record {number})" in problem.where
    with pytest.raises(UserError, match="records/missing-image"):
        prepare(recipe)
    assert prepare(replace(read_skip(tiny), root=str(folder))).pipeline("pretrain").step(1)


def read_skip(tiny):
    return tiny(*SKIP, text=PLAIN)


def ledger(path, share=0.0):
    return BadRecordLog(
        path=path, stage="one", before=5, policies={"a": Policy("skip", share)}, per_step={"a": 4.0}
    )


def bad(number):
    return BadRecord("f", 1, number, "", "image/damaged", "image", "x", "y", "z")


def test_the_bound_holds_over_stops(tmp_path):
    path = tmp_path / "bad_records.jsonl"
    kept = ledger(path)
    kept.open(5, {"a": [bad(99)]})
    for i in range(8):
        kept.add(i, [("a", bad(i))])
    with open(path, "a") as file:
        file.write('{"step": 13, "st')  # killed here
    again = ledger(path)
    again.open(9, {"a": [bad(99)]})  # steps 10 to 13 were lost
    assert [line["record"] for line in read_jsonl(path)] == [99, 0, 1, 2, 3]
    assert again.counts["a"] == 4
    for i in range(4, 10):
        again.add(i, [("a", bad(i)), ("a", bad(i)._replace(key="id"))])
    with pytest.raises(UserError) as error:
        again.add(10, [("a", bad(10))])
    assert [p.code for p in error.value.problems] == ["image/damaged", "records/too-many-bad"]
    assert "at most 10 by step 16" in error.value.problems[-1].expected
    assert ledger(tmp_path / "other", share=0.5).policies["a"].allowed(400) == 200


def test_there_is_no_list_if_nothing_is_bad(tmp_path):
    kept = ledger(tmp_path / "bad_records.jsonl")
    kept.open(5, {"a": []})
    kept.add(0, [])
    assert not (tmp_path / "bad_records.jsonl").exists()


class Killed:
    """A pipeline whose third step kills the worker."""

    def step_and_skipped(self, index):
        if index == 2:
            os.kill(os.getpid(), 9)
        return (), ()


class Hung:
    """A pipeline whose third step never ends."""

    def step_and_skipped(self, index):
        if index == 2:
            import time

            time.sleep(60)
        return (), ()


def test_a_worker_that_dies_is_a_machine_error():
    steps = load_steps(Killed(), 0, 9, workers=1, worker_init=ignore_in_worker)  # type: ignore[arg-type]
    with pytest.raises(MachineError) as error:
        list(steps)
    (problem,) = error.value.problems
    assert error.value.exit_code == 3 and problem.code == "data/worker-died"
    assert "speed.workers" in problem.hint


@pytest.mark.slow
def test_a_worker_that_hangs_is_a_machine_error():
    steps = load_steps(Hung(), 0, 9, workers=1, worker_init=ignore_in_worker, timeout=15)  # type: ignore[arg-type]
    with pytest.raises(MachineError) as error:
        list(steps)
    assert error.value.problems[0].code == "data/worker-hung"


def test_the_run_is_saved_before_a_machine_error_is_raised_again():
    def steps():
        yield ()
        raise MachineError(Problem("data/worker-died", "here", "a", "b", "c"))

    saved = []
    with pytest.raises(MachineError):
        list(saving(steps(), lambda: saved.append(1)))
    assert saved == [1]
