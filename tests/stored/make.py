"""Makes a stored checkpoint of this release: `python -m tests.stored.make` in a checkout, once a release.

    tests/stored/VERSION/
        data/        a few records, their images, a tokenizer: nothing that another release may draw differently
        run/         a run that was stopped after four of its eight steps
        losses.json  the losses of its next steps, and the machine they are from

`tests/training/checkpoint/test_read_stored_versions.py` resumes every one of them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch

from lmmkit.recipe import read_recipe
from lmmkit.runs.run_folder import RunFolder
from lmmkit.scenes import write_scenes
from lmmkit.training.checkpoint import read
from lmmkit.training.checkpoint.manifest import _version
from lmmkit.training.run import train
from tests.test_golden import kind

HERE = Path(__file__).resolve().parent
ROWS, STOPPED, STEPS = 6, 4, 8
RECIPE = """\
format: 1
seed: 5
model:
  vision:    {width: 8, depth: 1, heads: 2, patch: 8, image_size: 16, feature_layer: -1}
  connector: {kind: linear}
  text:      {width: 8, depth: 1, heads: 2, kv_heads: 1, mlp: 16, context: 256, tied: true}
  tokenizer: {from: tokenizer.model, kind: sentencepiece}
  chat:      {template: vicuna_v1, image_fit: pad}
data:
  questions: {kind: llava, records: rows.json, images: ., template: vicuna_v1, image_fit: pad}
stages:
  only:
    data:   {questions: 1.0}
    batch:  {samples: 2}
    length: {steps: 8}
    train:  {vision: {}, connector: {}, text: {lora: {r: 2, alpha: 4, dropout: 0.2}}}
    optim:  {lr: 1.0e-2, clip: 1.0, warmup: 2}
    losses: {next_token: 1.0}
output: {save_every: 4}
speed: {threads: 1}
"""


def write_data(folder: Path) -> None:
    """Writes a few records of a scene set."""
    with tempfile.TemporaryDirectory() as drawn:
        scenes = Path(drawn) / "scenes"
        write_scenes(scenes, count=100, heldout=20, seed=3)
        rows = json.loads((scenes / "finetune.json").read_text())[:ROWS]
        for row in rows:
            (folder / row["image"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(scenes / row["image"], folder / row["image"])
        shutil.copy(scenes / "tokenizer.model", folder / "tokenizer.model")
    (folder / "rows.json").write_text(json.dumps(rows, indent=1))


def main() -> None:
    torch.set_num_threads(1)
    folder = HERE / _version("lmmkit")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    write_data(folder / "data")
    (folder / "recipe.yaml").write_text(RECIPE)
    recipe = read_recipe(folder / "recipe.yaml", root=folder / "data")
    with tempfile.TemporaryDirectory() as made:
        run = train(recipe, out=Path(made) / "run").run
        kept = RunFolder(folder / "run")
        kept.checkpoints.mkdir(parents=True)
        for path in (run.checkpoints / f"step-{STOPPED:08d}", *run.checkpoints.glob("frozen-*")):
            shutil.copytree(path, kept.checkpoints / path.name)
        for path in (run.recipe, run.resolved, run.plan):
            shutil.copy(path, kept.path / path.name)
        identity = json.loads(run.run_json.read_text()) | {"root": "."}  # no machine's folders
        kept.run_json.write_text(json.dumps(identity, indent=2) + "\n")
        lines = run.read_metrics()
    assert read.step_of(read.newest(kept).path) == STOPPED and len(lines) == STEPS
    losses = {"on": kind(), "losses": [line["loss"].hex() for line in lines[STOPPED:]]}
    (folder / "losses.json").write_text(json.dumps(losses, indent=1) + "\n")


if __name__ == "__main__":
    main()
