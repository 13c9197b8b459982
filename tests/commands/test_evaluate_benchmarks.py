"""lmmkit eval on benchmarks: a run, a public model folder, the options, what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import transformers as hf
from PIL import Image

from lmmkit.evaluate.answers.answers_file import read_answers
from lmmkit.evaluate.benchmarks.names import BENCHMARKS
from tests.conftest import PLAIN
from tests.support import hf_model_folders
from tests.support.toy_benchmark import Toy, write_toy
from tests.test_cli import run

FEW = ["--set", "stages.pretrain.length.steps=1", "--set", "stages.finetune.length.steps=1"]


@pytest.fixture(scope="module")
def home(scenes, tmp_path_factory):
    """Trains a run, saves a llava-hf folder, and writes a toy benchmark."""
    home = tmp_path_factory.mktemp("eval")
    (home / "mine.yaml").write_text(PLAIN)
    run("train", home / "mine.yaml", "--root", scenes, "--out", home / "run", *FEW)
    config = hf.LlavaConfig(
        vision_config=hf_model_folders.VISIONS["clip"],
        text_config=hf.LlamaConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=160, vocab_size=1000,
            max_position_embeddings=512,
        ),
        image_token_index=998,
    )  # fmt: skip
    hf_model_folders.saved(hf_model_folders.made(hf.LlavaForConditionalGeneration(config)), home / "hf")
    shutil.copy(scenes / "tokenizer.model", home / "hf")
    for i in range(2):
        Image.effect_noise((30 + i, 20), 80).convert("RGB").save(home / f"{i}.png")
    write_toy(home / "files" / "toy", [home / "0.png", home / "1.png"])
    return home


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "toy", Toy)


def test_a_benchmark_on_a_run(home):
    text = run("eval", home / "run", "--on", "toy", "--files", home / "files", "--probe")
    assert "7 of 7 answered" in text and "visual_gain" in text
    folder = home / "run" / "answers" / "finetune" / "toy"
    answers = read_answers(folder / "answers.jsonl")
    assert len(answers) == 7 + 3 * 6
    results = json.loads((home / "run" / "results.json").read_text())
    assert results["toy"]["accuracy"]["n"] == 7 and results["toy"]["coverage"]["expected"] == 7
    before = (folder / "answers.jsonl").read_bytes()
    words = ["--on", "toy", "--files", home / "files", "--probe", "--alone", 5]
    text = run("eval", home / "run", *words)
    assert (folder / "answers.jsonl").read_bytes() == before
    found = json.loads((home / "run" / "results.json").read_text())["toy"]["alone"]
    assert found["asked"] == 5 and f"5 questions asked alone: {len(found['differ'])} answers differ" in text


def test_tasks_of_the_recipe_and_benchmarks_together(home):
    text = run("eval", home / "run", "--on", "answers,toy", "--on", "terms", "--files", home / "files")
    results = json.loads((home / "run" / "results.json").read_text())
    assert {"answers", "toy", "terms"} <= set(results) and "majority" in text
    kept = read_answers(home / "run" / "answers" / "finetune" / "answers" / "answers.jsonl")
    own = [a for a in kept if a.condition == "own"]
    assert len(own) == results["answers"]["accuracy"]["n"] > 0
    mean = sum(a.score for a in own) / len(own)
    assert results["answers"]["accuracy"]["value"] == pytest.approx(mean)
    assert all(a.majority for a in own) and {a.condition for a in kept} == {"own", "blank", "swapped"}


def test_a_public_folder_needs_a_folder_for_the_results(home, tmp_path):
    text = run("eval", home / "hf", "--on", "toy", "--files", home / "files", code=2)
    assert "answers/no-out" in text
    words = [
        "eval",
        home / "hf",
        "--on",
        "toy",
        "--files",
        home / "files",
        "--out",
        tmp_path / "o",
        "--limit",
        3,
    ]
    text = run(*words)
    assert "3 of 3 answered" in text
    assert json.loads((tmp_path / "o" / "results.json").read_text())["toy"]["accuracy"]["n"] == 3
    assert sorted(path.name for path in (home / "hf").iterdir() if "answers" in path.name) == []


def test_a_split_without_public_answers_gives_a_file_for_the_server(home, tmp_path):
    words = [
        "eval",
        home / "hf",
        "--on",
        "toy",
        "--files",
        home / "files",
        "--out",
        tmp_path,
        "--split",
        "server",
    ]
    text = run(*words)
    assert "pending-server: no score here; see upload/" in text
    assert (tmp_path / "toy-server" / "upload" / "manifest.json").is_file()
    results = json.loads((tmp_path / "results.json").read_text())["toy-server"]
    assert results["status"] == "pending-server" and "accuracy" not in results


@pytest.mark.parametrize(("words", "codes"), [
    (["--on", "toy,nothing"], {"evaluate/unknown-task"}),
    (["--on", "toy"], {"answers/no-files"}),
    (["--on", "toy", "--files", "nowhere"], {"answers/no-files"}),
    ([], {"evaluate/unknown-task"}),
])  # fmt: skip
def test_what_is_refused(home, tmp_path, words, codes):
    text = run("eval", home / "hf", "--out", tmp_path, *words, code=2)
    assert all(code in text for code in codes)


def test_another_model_does_not_continue_the_answers(home, tmp_path):
    common = ["--on", "toy", "--files", home / "files", "--out", tmp_path]
    run("eval", home / "hf", *common)
    text = run("eval", home / "run" / "model" / "pretrain", *common, code=2)
    assert "answers/changed" in text and "model" in text


def test_options_about_benchmarks_need_one(home):
    """Without one they would change nothing: tasks of the recipe do not read them."""
    words = ["--files", home / "files", "--split", "server", "--limit", 3, "--published"]
    for on in ([], ["--on", "answers"]):
        text = run("eval", home / "run", *on, *words, code=2)
        assert "answers/no-benchmark" in text and "4 problems" in text and "--limit 3" in text
