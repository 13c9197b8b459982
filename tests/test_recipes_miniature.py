"""The paper in miniature: two parts trained before, then both stages on top of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lmmkit.scenes import World, write_biased_scenes
from tests.test_cli import run

SHORT = ("--set", "stages.{}.length.steps=2", "--set", "stages.{}.batch.samples=2")
VISION, TEXT, CONNECTOR = "lmm.vision.", "lmm.decoder.", "lmm.connector."


def short(*stages: str) -> list[str]:
    return [word.format(stage) for stage in stages for word in SHORT]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Writes a small world with both trained parts, where the recipes look for them."""
    root = tmp_path_factory.mktemp("world")
    write_biased_scenes(root, World(bias=0.9, count=100, heldout=20))
    run("train", "miniature/encoder", "--root", root, "--out", root / "encoder", *short("captions"))
    enough = (
        "--set",
        "stages.text.length.steps=40",
        "--set",
        "stages.text.optim.lr=0.003",
    )  # for answers with words
    run("train", "miniature/decoder", "--root", root, "--out", root / "decoder", *enough)
    return root


@pytest.fixture(scope="module")
def trained(world) -> Path:
    out = world.parent / f"{world.name}-llava"
    run("train", "miniature/llava", "--root", world, "--out", out, *short("pretrain", "finetune"))
    return out


def weights(run_folder: Path, stage: str, prefix: str) -> dict[str, torch.Tensor]:
    tensors = load_file(run_folder / "model" / stage / "model.safetensors")
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    assert found
    return found


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == two.keys()
    return all(torch.equal(one[name], two[name]) for name in one)


def test_both_parts_come_from_their_own_runs_and_each_stage_trains_its_parts(world, trained):
    encoder = weights(world / "encoder", "captions", VISION)
    decoder = weights(world / "decoder", "text", TEXT)
    assert same(weights(trained, "pretrain", VISION), encoder)
    assert same(weights(trained, "pretrain", TEXT), decoder), "the first stage trains the connector alone"
    assert same(weights(trained, "finetune", VISION), encoder), "the encoder is frozen"
    assert not same(weights(trained, "finetune", TEXT), decoder)
    assert not same(weights(trained, "finetune", CONNECTOR), weights(trained, "pretrain", CONNECTOR))


def test_the_evaluation_has_the_figures_of_a_biased_world(world, trained):
    run("eval", trained)
    results = json.loads((trained / "results.json").read_text())
    for task, file in (("biased", "heldout.json"), ("balanced", "heldout_balanced.json")):
        rows, found = json.loads((world / file).read_text()), results[task]
        for prior in {row["prior"] for row in rows}:
            n = sum(row["prior"] == prior for row in rows)
            assert found[f"accuracy/{prior}"]["n"] == found[f"accuracy_empty/{prior}"]["n"] == n
        assert (
            found["accuracy"]["n"] == len(rows)
            and "visual_gain_empty" in found
            and "visual_gain_swapped" in found
        )
        assert 0 < found["deciding_attention"]["value"] < 1
        assert 0 < found["object_attention"]["n"] <= sum("box" in row for row in rows)
        assert found["object_attention"]["chance"] < found["deciding_attention"]["chance"]
    answers = (trained / "answers" / "finetune" / "balanced" / "answers.jsonl").read_text().splitlines()
    empty = [line for line in map(json.loads, answers) if line["condition"] == "empty"]
    assert empty and {Path(image).name for line in empty for image in line["images"]} == {"empty.png"}


@pytest.mark.parametrize("name", ["direct", "llava-from-nothing"])
def test_the_other_recipes_pass_the_check(world, name):
    text = run("check", f"miniature/{name}", "--root", world)
    assert "miniature" in text or "stage" in text


def test_a_decoder_of_another_tokenizer_is_noticed(world, tmp_path):
    write_biased_scenes(tmp_path, World(bias=0.5, count=100, heldout=20, seed=1))
    for part in ("encoder", "decoder"):
        (tmp_path / part).symlink_to(world / part)
    notice = "was trained with another tokenizer"
    assert notice in run("check", "miniature/llava", "--root", tmp_path)
    assert notice not in run("check", "miniature/llava", "--root", world)


def test_a_missing_part_is_reported_before_the_training(world, tmp_path):
    (tmp_path / "world").mkdir()
    for path in world.iterdir():
        if path.name != "encoder":
            (tmp_path / "world" / path.name).symlink_to(path)
    assert "encoder" in run("check", "miniature/llava", "--root", tmp_path / "world", code=2)
