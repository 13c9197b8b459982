"""`lmmkit eval` on what a recipe asks for, and on exports of a run in both public layouts."""

from __future__ import annotations

import json
import shutil

import pytest

from lmmkit.evaluate.answers.answers_file import read_answers
from lmmkit.runs.files import read_jsonl
from tests.conftest import PLAIN
from tests.support.official_benchmarks import write_official
from tests.test_cli import run

NAMES = "pope,scienceqa,mmbench"


@pytest.fixture(scope="module")
def answers_of_the_run(answering, official, tmp_path_factory):
    """Evaluates the run itself."""
    out = tmp_path_factory.mktemp("run")
    run("eval", answering, "--on", NAMES, "--files", official, "--out", out)
    return out


@pytest.mark.parametrize("layout", ["llava-hf", "llava", "lmmkit"])
def test_an_export_answers_as_the_run_does(answering, official, answers_of_the_run, tmp_path, layout):
    exported, out = tmp_path / "exported", tmp_path / "out"
    run("model", "export", answering, exported, "--format", layout)
    before = sorted(exported.rglob("*"))
    text = run("eval", exported, "--on", NAMES, "--files", official, "--out", out)
    assert sorted(exported.rglob("*")) == before, "nothing is written into the model"
    results = json.loads((out / "results.json").read_text())
    of_run = json.loads((answers_of_the_run / "results.json").read_text())
    for name in NAMES.split(","):
        got, want = (read_answers(folder / name / "answers.jsonl") for folder in (out, answers_of_the_run))
        assert [(a.key, a.raw, a.score) for a in got] == [(a.key, a.raw, a.score) for a in want]
        assert f"{name}: {len(want)} of {len(want)} answered" in text
        assert {k: v for k, v in results[name].items() if k != "seconds"} == {
            k: v for k, v in of_run[name].items() if k != "seconds"
        }
        header = json.loads((out / name / "answers.json").read_text())
        assert header["model_folder"] == str(exported) and header["prompt"]["template"] == ["vicuna_v1"]


def test_an_export_needs_a_folder_for_the_results(answering, official, tmp_path):
    run("model", "export", answering, tmp_path / "hf")
    text = run("eval", tmp_path / "hf", "--on", "pope", "--files", official, code=2)
    assert "answers/no-out" in text and "--out" in text
    words = ("--on", "pope", "--files", official, "--out", tmp_path / "out", "--root", tmp_path)
    assert "answers/no-root" in run("eval", tmp_path / "hf", *words, code=2), (
        "it has no paths that `--root` moves"
    )


EVALUATE = """
evaluate:
  controls: [blank]
  tasks:
    answers: {kind: questions, data: heldout, samples: 4, max_new_tokens: 4}
    pope: {files: official, max_new_tokens: 3}
    read: {kind: textvqa, files: official, split: val-no-ocr, samples: 2, max_new_tokens: 3}
    wild: {kind: llava-wild, files: official, stage: pretrain, max_new_tokens: 3}
"""
FEW = ["--set", "stages.pretrain.length.steps=2", "--set", "stages.finetune.length.steps=2"]


@pytest.fixture
def home(scenes, tmp_path):
    """Writes a recipe with benchmarks, whose files are below its root."""
    shutil.copytree(scenes, tmp_path / "root")
    write_official(tmp_path / "root/official", ["pope", "textvqa", "llava-wild"])
    text = PLAIN[: PLAIN.index("evaluate:")] + EVALUATE[1:] + PLAIN[PLAIN.index("output:") :]
    (tmp_path / "mine.yaml").write_text(text)
    return tmp_path


def test_benchmarks_of_a_recipe(home):
    run("check", home / "mine.yaml", "--root", home / "root")
    run("train", home / "mine.yaml", "--root", home / "root", "--out", home / "run", *FEW)
    text = run("eval", home / "run")
    results = json.loads((home / "run/results.json").read_text())
    assert list(results) == ["answers", "pope", "read", "wild"]
    assert results["pope"]["coverage"]["answered"] == 12 and "f1_blank" in results["pope"]
    assert results["read"]["accuracy/prompt without OCR"]["n"] == 2 and results["read"]["coverage"]["of"] == 3
    assert "first 2 of 3" in text and results["wild"]["status"] == "pending-judge"
    answers = read_answers(home / "run/answers/finetune/read/answers.jsonl")
    assert {a.split for a in answers} == {"val-no-ocr"} and {a.task for a in answers} == {"read"}
    assert all("OCR" not in a.question and a.n_new_tokens <= 3 for a in answers)
    assert len(read_answers(home / "run/answers/pretrain/wild/answers.jsonl")) == 6, "of its stage"
    assert "wild: 9 requests in" in run("answers", "judge", home / "run", "wild", "--files", home / "root/official")  # fmt: skip
    before = (home / "run/answers/finetune/pope/answers.jsonl").read_bytes()
    run("eval", home / "run", "--on", "pope", "--on", "read")
    assert (home / "run/answers/finetune/pope/answers.jsonl").read_bytes() == before
    assert list(json.loads((home / "run/results.json").read_text())) == ["answers", "pope", "read", "wild"]


def test_a_benchmark_validates_and_chooses_the_best_weights(home):
    validate = (
        "stages.finetune.validate={every: 1, data: heldout, samples: 4, tasks: [pope, read], best: pope/f1}"
    )
    words = ["--root", home / "root", *FEW, "--set", validate]
    run("check", home / "mine.yaml", *words)
    text = run("train", home / "mine.yaml", "--out", home / "run", *words)
    lines = [line for line in read_jsonl(home / "run/metrics.jsonl") if "val/seconds" in line]
    assert len(lines) == 2 and all(0 <= line["val/tasks/pope/f1"] <= 1 for line in lines)
    line = f"val/tasks/pope/f1 {lines[0]['val/tasks/pope/f1']:.4f}"
    assert line in text and "val/tasks/read/accuracy" in text and "pope/f1/random" not in text
    assert json.loads((home / "run/model/finetune-best/config.json").read_text())["best"]["metric"] == "val/tasks/pope/f1"  # fmt: skip


def test_files_of_a_validation_are_checked_before_the_run(home):
    validate = "stages.finetune.validate={every: 1, data: heldout, samples: 4, tasks: [pope, read]}"
    words = ["--root", home / "root", *FEW, "--set", validate]
    (home / "root/official/pope/coco_pope_random.json").write_text('{"question_id": 1')
    (home / "root/official/textvqa/train_images/003a.jpg").unlink()
    for command in (["check"], ["train", "--out", home / "run"]):
        text = run(command[0], home / "mine.yaml", *command[1:], *words, code=2)
        assert "benchmarks/not-json" in text and "benchmarks/no-images" in text
    assert not (home / "run").exists()
    shutil.rmtree(home / "root/official/textvqa")
    text = run("check", home / "mine.yaml", *words, code=2)
    assert "answers/no-files" in text and "benchmarks/no-file" not in text


def test_files_are_checked_before_the_first_question(home):
    run("train", home / "mine.yaml", "--root", home / "root", "--out", home / "run", *FEW)
    (home / "root/official/llava-wild/rule.json").unlink()
    text = run("eval", home / "run", code=2)
    assert "benchmarks/no-file" in text and "rule.json" in text
    assert not (home / "run/answers").exists() and not (home / "run/results.json").exists()
