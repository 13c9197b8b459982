"""What people do first: published weights, a JSON of their own, low-rank updates, an encoder that learns too."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import lmmkit
from lmmkit.runs.run_folder import RunFolder
from tests.support import hf_model_folders
from tests.test_cli import run
from tests.training.test_run import figures

QKV, DOWN = "lmm.vision.blocks.0.qkv.weight", "lmm.decoder.blocks.0.mlp.down.weight"
HELDOUT = ["data.heldout={kind: llava, records: heldout.json, images: ., template: vicuna_v1, image_fit: pad}",
           "evaluate={tasks: {answers: {kind: questions, data: heldout, max_new_tokens: 3}}}"]  # fmt: skip
LORA = "stages.finetune.train.text={lora: {r: 4, alpha: 8, dropout: 0.05}, lr: 2.0e-3}"
SMALL = [
    "stages.finetune.batch.samples=8",
    "speed.workers=0",
    "output.save_every=1",
    "stages.finetune.train.vision={lr: 2.0e-4}",
]


@pytest.fixture(scope="module")
def root(scenes, tmp_path_factory):
    """Writes a user's folder: a llava-hf model, images, records with two, one or no image."""
    root = tmp_path_factory.mktemp("user")
    text = hf.LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=160, vocab_size=1000,
        max_position_embeddings=2048,
    )  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=hf_model_folders.VISIONS["clip"], text_config=text, image_token_index=998
    )
    folder = root / "weights" / "llava-1.5-7b-hf"
    hf_model_folders.saved(hf_model_folders.made(hf.LlavaForConditionalGeneration(config)), folder)
    shutil.copy(scenes / "tokenizer.model", folder)
    rows = json.loads((scenes / "finetune.json").read_text())[:24]
    for i, row in enumerate(rows):
        (root / row["image"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scenes / row["image"], root / row["image"])
        if i % 3 == 0:
            row["image"] = [row["image"], rows[i - 1]["image"]]
            question = "<image>\nThis is the first. <image>\nAnd this? Which has a red object?"
            row["conversations"] = [
                {"from": "human", "value": question},
                {"from": "gpt", "value": "the first"},
            ]
        elif i % 3 == 1:
            del row["image"]
            row["conversations"] = [{"from": "human", "value": "Is it red?"}, {"from": "gpt", "value": "yes"}]
    (root / "mine.json").write_text(json.dumps(rows))
    (root / "heldout.json").write_text(json.dumps(rows[:6]))
    return root


def train(root, out, *overrides: str, resume: bool = False) -> RunFolder:
    sets = [word for each in (*SMALL, *HELDOUT, *overrides) for word in ("--set", each)]
    run("train", "finetune-task", "--root", root, "--out", out, *sets, *(["--resume"] if resume else []))
    return RunFolder(out)


def moved(run: RunFolder, root, name: str) -> float:
    """Returns the largest change of a tensor since the folder that the run began from."""
    before = lmmkit.load(root / "weights" / "llava-1.5-7b-hf", device="cpu").objective.state_dict()[name]
    after = load_file(run.model("finetune") / "model.safetensors")[name]
    return float((after.float() - before).abs().max())


@pytest.mark.parametrize(
    "overrides", [(), (LORA, "stages.finetune.optim.kind=adamw8bit")], ids=["whole", "low rank"]
)
def test_the_whole_road(root, tmp_path, overrides):
    done = train(root, tmp_path / "run", *overrides)
    assert len(done.read_metrics()) == 3
    assert 0 < moved(done, root, QKV) < 3 * 2.0e-4 * 1.5, "the encoder learns at its own rate"
    assert moved(done, root, DOWN) > 0
    held = {n: t.dtype for n, t in load_file(done.model("finetune") / "model.safetensors").items()}
    assert held[DOWN] == (torch.bfloat16 if overrides else torch.float32) and held[QKV] == torch.float32

    part = tmp_path / "part"
    shutil.copytree(done.path, part)
    shutil.rmtree(part / "model")
    shutil.rmtree(sorted((part / "checkpoints").iterdir())[-1])
    assert figures(train(root, part, *overrides, resume=True)) == figures(done)

    run("eval", done.path, "--probe")
    answers = json.loads((done.path / "results.json").read_text())["answers"]
    assert answers["accuracy"]["n"] == 6 and "accuracy_swapped" in answers
    two = [word for path in sorted((root / "images").rglob("*.*"))[:2] for word in ("--image", path)]
    ask = ["chat", done.path, *two, "--prompt", "Which is red?", "--max-new-tokens", 3]
    assert len(two) == 4 and run(*ask) and run(*ask, "--dtype", "bfloat16")

    run("model", "export", done.path, tmp_path / "hf", "--format", "llava-hf")
    theirs = hf.LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    id_BT, _ = hf_model_folders.ids(300, [40])
    hf_model_folders.with_images(id_BT, torch.ones_like(id_BT), [[3, 20]], theirs.config.image_token_index, 9)
    pixels = torch.randn(2, 3, 30, 30, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = theirs(input_ids=id_BT, pixel_values=pixels).logits
    got = lmmkit.load(done.path, device="cpu").logits(id_BT, pixels)
    assert hf_model_folders.error(got, want[..., : got.shape[-1]]) < 1e-5


def test_check_estimates_the_memory_of_each_choice(root):
    def bytes_of(*sets: str) -> dict:
        words = [word for each in (*SMALL, *HELDOUT, *sets) for word in ("--set", each)]
        return json.loads(run("check", "finetune-task", "--root", root, "--json", *words))["stages"][
            "finetune"
        ]["bytes"]

    whole, lean, eight = bytes_of(), bytes_of(LORA), bytes_of("stages.finetune.optim.kind=adamw8bit")
    assert lean["weights"] < whole["weights"] and lean["optimizer"] < whole["optimizer"]
    assert eight["optimizer"] < 0.5 * whole["optimizer"] and eight["weights"] == whole["weights"]
