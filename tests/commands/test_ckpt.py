"""lmmkit ckpt verify: a table, an exit code, the damaged file by name."""

from __future__ import annotations

import json

import pytest
import torch

from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import write
from lmmkit.training.checkpoint.rng import rng_state
from lmmkit.training.checkpoint.tensor_files import rank_slices
from lmmkit.training.distributed.process_group import ALONE
from tests.test_cli import run as lmmkit


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.run_json.write_text("{}")
    for step in (1, 2, 3):
        write.put(
            run, step, rank_slices({"w": torch.full((50,), float(step))}, ALONE), {}, keep=3, rng=rng_state()
        )
    return run


def test_sound_checkpoints(run):
    text = lmmkit("ckpt", "verify", run.path)
    assert "continues from step 3" in text and text.count("not read") == 2
    text = lmmkit("ckpt", "verify", run.path, "--all")
    assert text.count("sound") == 3 and "not read" not in text


def test_a_damaged_newest_is_named_and_what_a_resume_would_do(run):
    file = run.checkpoints / "step-00000003" / "shard-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    text = " ".join(lmmkit("ckpt", "verify", run.path, code=2).split())
    assert "step-00000003/shard-00000.safetensors" in text and "crc32 differs" in text
    assert "continues from step 2" in text and "checkpoint/damaged" in text
    report = json.loads(lmmkit("ckpt", "verify", run.path, "--json", code=2))
    assert report["resumes_at"] == 2 and [c["sound"] for c in report["checkpoints"]] == [False, True, True]
    assert [c["read"] for c in report["checkpoints"]] == [True, True, False]


def test_an_older_one_counts_with_all(run):
    (run.checkpoints / "step-00000001" / "state.json").unlink()
    lmmkit("ckpt", "verify", run.path)
    assert "step-00000001/state.json" in "".join(
        lmmkit("ckpt", "verify", run.path, "--all", code=2).split("\n")
    )


def test_nothing_to_verify(run, tmp_path):
    for path in run.checkpoints.iterdir():
        path.rename(path.with_name(".trash-x" + path.name))
    assert "begins at step 0" in lmmkit("ckpt", "verify", run.path)
    lmmkit("ckpt", "verify", tmp_path, code=2)
