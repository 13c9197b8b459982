"""A stopped and resumed run on COCO captions and VQA questions: every figure and weight of one that was not stopped."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lmmkit.errors import UserError
from lmmkit.training import stage_loop
from lmmkit.training.run import train
from tests.conftest import MODEL
from tests.data.test_images import noisy_image
from tests.training.test_run import figures


def write_official(folder: Path) -> None:
    """Writes four images, their captions in COCO's form, and questions in VQA's, of which one has no answer."""
    for i in range(4):
        noisy_image(30 + i, 24, seed=i).save(folder / f"{i}.png")
    captions = [{"id": i, "image_id": i % 4, "caption": f"a {COLOURS[i]} circle"} for i in range(6)]
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(4)]
    asked = [
        {"question_id": i, "image_id": i, "question": "what is it", "image": f"{i % 4}.png"} for i in range(7)
    ]
    given = [{"question_id": i, "image_id": i, "answers": [{"answer": COLOURS[i]}]} for i in range(6)]
    for name, value in {
        "coco.json": {"images": images, "annotations": captions},
        "asked.json": {"questions": asked},
        "given.json": {"annotations": given},
    }.items():
        (folder / name).write_text(json.dumps(value))


COLOURS = ("red", "blue", "green", "yellow", "black", "white")
OFFICIAL = """
stages:
  only:
    data:   {captions: 1.0, questions: 1.0}
    batch:  {samples: 3, group: modality}
    length: {steps: 5}
    train:  {connector: {}, text: {}}
    optim:  {lr: 2.0e-3, warmup: 0.3}
    losses: {next_token: 1.0}
output: {save_every: 0}
speed: {threads: 1}
"""


def test_a_stopped_run_on_official_files_goes_on_bit_for_bit(tiny, tmp_path, monkeypatch):
    write_official(tmp_path)
    files = {"records": "asked.json", "annotations": "given.json"}
    vqa = ", ".join(f"{key}: {tmp_path / name}" for key, name in files.items())
    rest = f"images: {tmp_path}, bad_records: skip"
    sources = (
        f"data.captions={{kind: coco, records: {tmp_path / 'coco.json'}, template: plain, image_fit: crop, {rest}}}",
        f"data.questions={{kind: vqa, {vqa}, template: vicuna_v1, image_fit: pad, {rest}}}",
    )
    recipe, steps = tiny(*sources, text=MODEL + OFFICIAL), []
    whole = train(recipe, out=tmp_path / "whole").run

    def run_step_and_signal(*args, **kwargs):
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_step(*args, **kwargs)

    run_step = stage_loop.run_step
    monkeypatch.setattr(stage_loop, "run_step", run_step_and_signal)
    stopped = train(recipe, out=tmp_path / "run")
    assert stopped.signal == signal.SIGTERM and len(stopped.run.read_metrics()) == 2
    changed = (tmp_path / "given.json").read_text()
    (tmp_path / "given.json").write_text(changed.replace("green", "brown"))
    with pytest.raises(UserError, match="resume/changed") as error:
        train(recipe, out=tmp_path / "run", resume=True)
    assert "data.questions" in str(error.value)
    (tmp_path / "given.json").write_text(changed)
    assert train(recipe, out=tmp_path / "run", resume=True).signal is None
    assert figures(stopped.run) == figures(whole) and len(figures(whole)) == 5
    for source in ("captions", "questions"):
        assert any(line[f"loss/{source}"] for line in figures(whole)), source
    ours, theirs = (load_file(run.model("only") / "model.safetensors") for run in (stopped.run, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
