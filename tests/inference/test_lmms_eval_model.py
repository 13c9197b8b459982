"""lmms-eval runs a model of lmmkit on a local task, offline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import lmmkit
from tests.conftest import PLAIN
from tests.test_cli import run

pytestmark = pytest.mark.lmms_eval
ROOT = Path(__file__).resolve().parents[2]
TASK = """
task: toy
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/toy.jsonl}}
test_split: test
output_type: generate_until
doc_to_visual: !function toy_utils.images
doc_to_text: question
doc_to_target: answer
generation_kwargs: {max_new_tokens: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: [{version: 0.0}]
"""
UTILS = """
from PIL import Image

def images(doc):
    return [Image.open(doc["image"]).convert("RGB")]
"""


def test_the_entry_point_names_a_model():
    """Finds the manifest by its entry point; lmms-eval is asked in the next test."""
    import tomllib

    (name,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "lmms_eval.models"
    ].items()
    assert name == ("lmmkit", "lmmkit.inference.lmms_eval_manifest:models")
    code = "import sys, lmmkit.inference.lmms_eval_manifest; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_lmms_eval_gets_the_answers_of_the_model(scenes, tmp_path):
    pytest.importorskip("lmms_eval")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models.registry_v2 import ModelRegistryV2
    from lmms_eval.tasks import TaskManager

    from lmmkit.inference.lmms_eval_manifest import CLASS, models
    from lmmkit.inference.lmms_eval_model import LmmkitModel

    manifest = models()
    assert manifest.model_id == "lmmkit" and manifest.simple_class_path == CLASS
    registry = ModelRegistryV2()
    registry.register_manifest(manifest)
    assert registry.get_model_class("lmmkit") is LmmkitModel

    steps = ["--set", "stages.pretrain.length.steps=1", "--set", "stages.finetune.length.steps=1"]
    (tmp_path / "mine.yaml").write_text(PLAIN)
    run("train", tmp_path / "mine.yaml", "--root", scenes, "--out", tmp_path / "run", *steps)
    lines = []
    for i in range(4):
        path = tmp_path / f"{i // 2}.png"
        Image.effect_noise((30, 20 + i // 2), 80).convert("RGB").save(path)
        lines.append({"question": f"what is number {i}?", "image": str(path), "answer": "red"})
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "toy.yaml").write_text(TASK.replace("FOLDER", str(tmp_path)))
    (tmp_path / "tasks" / "toy_utils.py").write_text(UTILS)
    model = LmmkitModel(str(tmp_path / "run"), device="cpu")
    found = simple_evaluate(
        model=model, tasks=["toy"], task_manager=TaskManager(include_path=str(tmp_path / "tasks")), log_samples=True,
    )  # fmt: skip
    answers = [sample["filtered_resps"] for sample in found["samples"]["toy"]]
    again = lmmkit.load(tmp_path / "run", device="cpu")
    expected = [again.reply(line["question"], line["image"], max_new_tokens=4) for line in lines]
    assert [a[0] if isinstance(a, list) else a for a in answers] == expected and any(expected)
