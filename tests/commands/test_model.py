"""`lmmkit model export` where the system refuses to write: a problem, and nothing is left."""

from __future__ import annotations

import errno
import shutil

import pytest
from safetensors import SafetensorError

from lmmkit.runs import files
from lmmkit.training.run import train
from lmmkit.weights import tensor_writer
from tests.conftest import PLAIN
from tests.test_cli import run

LORA = "stages.finetune.train={text: {lora: {r: 2, alpha: 4}}}"
FORMATS = ("llava-hf", "llava", "lmmkit", "peft")


@pytest.fixture(scope="module")
def model(tmp_path_factory, scenes):
    from lmmkit.recipe import read_text

    steps = [f"stages.{stage}.length.steps=1" for stage in ("pretrain", "finetune")]
    recipe = read_text(PLAIN, name="tiny.yaml", overrides=[*steps, LORA], root=scenes)
    return train(recipe, out=tmp_path_factory.mktemp("model") / "run").run.path


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_that_cannot_be_made_is_a_problem(model, tmp_path, kind):
    (tmp_path / "file").write_text("x")
    text = run("model", "export", model, tmp_path / "file" / "mine", "--format", kind, code=3)
    assert "export/cannot-write" in text and str(tmp_path / "file" / "mine") in text


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")]
)
def test_a_full_disk_is_a_problem_and_leaves_nothing(model, tmp_path, monkeypatch, kind, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(tensor_writer, "write", full)
    monkeypatch.setattr(shutil, "copytree", full)
    text = run("model", "export", model, tmp_path / "mine", "--format", kind, code=3)
    assert "export/cannot-write" in text and "No space left" in text
    assert not list(tmp_path.iterdir())


def test_a_full_disk_at_the_last_small_file_is_the_same_problem(model, tmp_path, monkeypatch):
    def full(name):
        if name == "write generation_config.json":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "io_point", full)
    text = run("model", "export", model, tmp_path / "mine", code=3)
    assert "export/cannot-write" in text and "No space left" in text and not list(tmp_path.iterdir())
