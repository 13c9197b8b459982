"""The command line as a user meets it: what works, and how bad input is reported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from lmmkit.cli import app
from lmmkit.commands import check
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import shipped
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training import resume
from tests.conftest import DIRECT, PLAIN
from tests.training.test_resume import of_micro_batches


def run(*words: str, code: int = 0):
    """Runs a command, checks its exit code, finds no traceback; returns its output and errors."""
    result = CliRunner().invoke(app, list(map(str, words)))
    text = result.output + (result.stderr or "")
    assert result.exit_code == code, text + str(result.exception)
    assert "Traceback" not in text
    return text


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe file."""
    path = tmp_path / "mine.yaml"
    path.write_text(DIRECT)
    return path


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    """Trains a run folder by the command."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "mine.yaml").write_text(DIRECT)
    run("train", folder / "mine.yaml", "--root", scenes, "--out", folder / "run")
    return folder / "run"


def test_check_prints_the_plan_and_the_cost(recipe, scenes):
    text = run("check", recipe, "--root", scenes, "--images")
    assert "term image_order  weight 1  chance 1.609" in text and "no problems." in text
    assert "--images reads" not in text
    if not torch.cuda.is_available():
        assert "attention on this cpu: sdpa (xformers: no kernels for cpu; flash: no kernels for cpu)" in text
    facts = json.loads(run("check", recipe, "--root", scenes, "--json"))
    assert facts["records"]["questions"] == 120
    assert facts["stages"]["finetune"]["trainable"] < facts["stages"]["pretrain"]["trainable"]


def test_check_tells_which_parts_are_narrow_and_hours_at_a_speed(recipe, scenes):
    sets = ["--set", "numerics.frozen=bfloat16", "--set", "stages.pretrain.train={connector: {}}"]
    text = run("check", recipe, "--root", scenes, *sets, "--tflops", 66)
    assert "frozen in bfloat16: vision\n" in text and "1 x 66 TFLOP/s" in text


def test_check_tells_of_tasks_together_with_the_rest(recipe, scenes):
    recipe.write_text(
        DIRECT.replace("{kind: terms, data: heldout}", "{kind: pop, data: heldout, stage: last}")
    )
    text = run("check", recipe, "--root", scenes, code=2)
    assert "evaluate/unknown-kind" in text and "evaluate/unknown-stage" in text
    recipe.write_text(recipe.read_text().replace("{grid: 3", "{gird: 3"))
    text = run("check", recipe, "--root", scenes, code=2)
    assert "evaluate/unknown-kind" in text and "plugin/unknown-key" in text


def test_check_tells_why_a_kernel_cannot_run(recipe, scenes):
    if torch.cuda.is_available():
        pytest.skip("a machine where xformers may run")
    for name in ("xformers", "flash"):
        text = run("check", recipe, "--root", scenes, "--set", f"speed.attention={name}", code=3)
        assert "model/attention-backend" in text and "no kernels for cpu" in text and "eager: can run" in text


def test_the_cost_of_a_large_model_is_printed_whole_in_eighty_columns():
    stage = {
        "steps": 5198, "tokens_per_step": 123_456.0, "micro_batches": 12.5, "supervised": 0.123,
        "trainable": 6_738_415_616, "parameters": 7_061_000_000, "hours": 12.345, "devices": 8,
        "bytes": {"weights": 2**35, "gradients": 2**35, "optimizer": 2**36, "activations": 2**34, "all": 144 * 2**30},
    }  # fmt: skip
    console = Console(width=80, record=True, soft_wrap=True)
    console.print(check._table({"pretrain": stage, "finetune": stage}))
    console.print(check._memory({"pretrain": stage, "finetune": stage}, 400))
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    for word in ("steps", "tokens", "batches", "vised", "trainable", "device", "6,738", "144.00", "12.35"):
        assert word in text, text


def test_help_tells_defaults():
    for words, default in (
        (("train",), "runs/RECIPE"), (("check",), "here"), (("eval",), "all"), (("plugins", "trace"), "every stage"),
        (("recipes", "copy"), "NAME.yaml here"),
    ):  # fmt: skip
        text = " ".join(run(*words, "--help").replace("│", " ").split())
        assert f"[default: {default}]" in text, words


def test_eval_writes_results_with_controls_and_terms(trained):
    text = run("eval", trained)
    assert "presence" in text and "image_order/accuracy" in text
    results = json.loads((trained / "results.json").read_text())
    answers = results["answers"]
    assert {"accuracy", "accuracy_blank", "accuracy_swapped", "accuracy/presence"} <= set(answers)
    assert 0 < answers["accuracy"]["chance"] < 1, "the majority baseline"
    assert answers["accuracy"]["n"] == 72 and answers["accuracy"]["low"] <= answers["accuracy"]["value"]
    assert results["terms"]["image_order/accuracy"]["chance"] == pytest.approx(0.2)
    assert results["terms"]["guided_loss/mass"]["n"] > 0
    assert results["restore"]["text_order"]["n"] == 4
    for stage, task, instance, figure in (
        ("finetune", "terms", "image_order", "image_order/accuracy"), ("pretrain", "restore", "text_order", "text_order"),
    ):  # fmt: skip
        path = trained / "answers" / stage / task / results[task]["puzzles"]
        puzzles = json.loads(path.read_text())["instances"][instance]
        right = [puzzle["right"] for puzzle in puzzles["puzzles"]]
        assert puzzles["n"] == len(right) == results[task][figure]["n"] and puzzles["right"] == sum(right)
        assert sum(right) / len(right) == pytest.approx(results[task][figure]["value"])
        assert puzzles["chance"] == pytest.approx(results[task][figure]["chance"])
        assert all(Path(image).is_file() for puzzle in puzzles["puzzles"] for image in puzzle["images"])


def test_chat_streams_what_it_answers(trained, scenes):
    image = next((scenes / "images" / "heldout").iterdir())
    first = run(
        "chat", trained, "--image", image, "--prompt", "How many objects are there?", "--max-new-tokens", 5
    )
    again = run(
        "chat", trained, "--image", image, "--prompt", "How many objects are there?", "--max-new-tokens", 5
    )
    assert first == again and first.endswith("\n")
    run("chat", trained, "--prompt", "Hello?", "--max-new-tokens", 3, "--temperature", 0.8, "--seed", 1)


def test_a_model_answers_and_is_measured_in_bfloat16(trained, scenes):
    image = next((scenes / "images" / "heldout").iterdir())
    run(
        "chat",
        trained,
        "--image",
        image,
        "--prompt",
        "How many?",
        "--max-new-tokens",
        2,
        "--dtype",
        "bfloat16",
    )
    found = []
    for dtype in ("bfloat16", "float32"):
        run("eval", trained, "--on", "terms", "--dtype", dtype)
        results = json.loads((trained / "results.json").read_text())
        found.append(results["terms"]["next_token"]["value"])
    narrow, wide = found
    assert narrow == pytest.approx(wide, rel=0.02) and narrow != wide


def test_chat_on_a_broken_image_is_reported(trained, tmp_path):
    (tmp_path / "x.jpg").write_text("<html>")
    assert "x.jpg" in run("chat", trained, "--image", tmp_path / "x.jpg", "--prompt", "?", code=2)


def test_diff_of_a_recipe_and_a_run(trained, recipe):
    assert "the same." in run("diff", recipe, trained)
    recipe.write_text(DIRECT.replace("seed: 5", "seed: 6").replace("workers", "workers"))
    assert "mathematics" in run("diff", recipe, trained)


def test_diff_of_runs_whose_terms_do_not_add_up(tiny, tmp_path):
    """Checks that what cuts a step is mathematics for these. Recipes alone do not show it: `diff` opens no plugin."""
    folders = {}
    for name, text in (("apart", of_micro_batches()), ("plain", PLAIN)):
        for ranks, cut in ((1, "speed.tokens=4096"), (2, "speed.tokens=2000")):
            prepared = prepare(tiny(cut, text=text), trust_files=True)
            folders[name, ranks] = made = RunFolder.create(tmp_path / f"{name}-{ranks}", resume=False)
            resume.begin(made, prepared, None, ranks)
    classes = {}
    for name in ("apart", "plain"):
        pair = [folders[name, ranks].path for ranks in (1, 2)]
        found = json.loads(run("diff", *pair, "--json"))
        assert [(d["key"], d["a"], d["b"]) for d in found] == [("speed.tokens", 4096, 2000), ("ranks", 1, 2)]
        classes[name] = {d["class"] for d in found}
        text = " ".join(run("diff", *pair).split())
        assert ("Of apart the value is the mean over micro-batches" in text) is (name == "apart")
    assert classes == {"apart": {"mathematics"}, "plain": {"speed"}}
    recipes = [folders["apart", ranks].resolved for ranks in (1, 2)]
    assert {d["class"] for d in json.loads(run("diff", *recipes, "--json"))} == {"speed"}


def test_a_folder_does_not_hide_the_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert shipped.find_recipe(Path("quickstart")) == shipped.shipped()["quickstart"]
    (tmp_path / "quickstart.yaml").write_text("format: 1")
    assert shipped.find_recipe(Path("quickstart.yaml")) == Path("quickstart.yaml")


def test_recipes_list_and_copy(tmp_path):
    assert "quickstart-llava" in run("recipes", "list")
    run("recipes", "copy", "quickstart", tmp_path / "q.yaml")
    assert "recipes/exists" in run("recipes", "copy", "quickstart", tmp_path / "q.yaml", code=2)
    assert "Did you mean" in run("recipes", "copy", "quickstrat", code=2)


def test_plugins_list_explain_trace(recipe, scenes):
    assert "directed_token" in run("plugins", "list")
    assert "place" in run("plugins", "explain", "directed_token")
    assert "term text_order" in run("plugins", "explain", recipe, "--root", scenes)
    assert "term text_order" in run("plugins", "explain", "quickstart", "--root", scenes)
    text = run("plugins", "trace", recipe, "--root", scenes, "--samples", 1, "--stage", "pretrain")
    assert "image[9] Shuffle" in text and "drt[1]*" in text and "response" in text
    assert "Did you mean" in run("plugins", "explain", "directed_tokn", code=2)


def test_components_are_explained_with_types_and_choices():
    text = run("plugins", "explain", "directed_token")
    assert "place: one of end, start, before_response" in text and "std: float" in text
    assert "layers: all or a list of int" in run("plugins", "explain", "guided_loss")
    assert "permutations: int  (required)" in run("plugins", "explain", "image_order")


def test_the_components_of_a_file_are_explained_where_it_is_trusted(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from typing import Literal\n"
        "from lmmkit.api import HiddenAt, Loss, Select, hookimpl\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Loss):\n"
        "    'Words of mine.'\n"
        "    how: Literal['a', 'b'] = 'a'\n"
        "    needs = (HiddenAt(Select()),)\n"
        "    def value(self, ctx): return ctx[self.needs[0]].sum()\n"
        "@hookimpl\n"
        "def lmmkit_components():\n"
        "    return {'mine': Mine, 'other': Mine}\n"
    )
    text = run("plugins", "explain", file, "--trust-files")
    assert "mine  Loss" in text and "other  Loss" in text and "Words of mine." in text
    assert "how: one of a, b" in text
    assert "mine  Loss" not in run("plugins", "explain", f"{file}:other", "--trust-files")
    assert "plugin/untrusted-file" in run("plugins", "explain", file, code=2)
    assert "plugin/no-file" in run("plugins", "explain", tmp_path / "none.py", "--trust-files", code=2)


def test_data_needs_no_plugin(recipe, scenes):
    text = DIRECT.replace("text_order:     {}", "text_order:     {use: ./absent.py}")
    recipe.write_text(text.replace("{grid: 3", "{gird: 3"))
    assert "[image x 9]" in run("data", "show", recipe, "questions", "--root", scenes, "--count", 1)
    assert "captions: 120 records, all good" in run("data", "check", recipe, "--root", scenes)


def test_data_show_and_check(recipe, scenes):
    assert "[image x 9]" in run("data", "show", recipe, "questions", "--root", scenes, "--count", 1)
    assert "heldout: 72 records, all good" in run("data", "check", recipe, "--root", scenes, "--decode")
    assert "Did you mean" in run("data", "show", recipe, "question", "--root", scenes, code=2)
    assert "0 to 119" in run("data", "show", recipe, "questions", "--record", 500, "--root", scenes, code=2)


def test_data_check_lists_everything_wrong(scenes, tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(scenes, folder)
    rows = json.loads((folder / "pretrain.json").read_text())
    for i in range(0, 60, 2):
        rows[i]["conversations"] = []
    (folder / "pretrain.json").write_text(json.dumps(rows, indent=0))
    broken = folder / rows[1]["image"]
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    os.remove(folder / rows[3]["image"])
    path, listed = tmp_path / "mine.yaml", tmp_path / "bad.jsonl"
    path.write_text(DIRECT)
    args = ("data", "check", path, "captions", "--root", folder, "--report", listed)
    text = run(*args, code=2)
    assert "30 bad records and 1 bad image," in text and "31 problems listed" in text
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [line["record"] for line in lines] == [*range(0, 60, 2), 3]
    assert all(
        line[key] for line in lines for key in ("source", "file", "code", "key", "got", "expected", "hint")
    )
    figures = json.loads(run(*args, "--decode", "--json", code=2))["sources"]["captions"]
    assert (figures["records"], figures["bad_records"], figures["bad_images"]) == (120, 30, 2)
    listed.unlink()
    assert "30 bad records" not in run(
        *args, "--set", "data.captions.bad_records=skip", "--set", "data.captions.bad_share=0.5"
    )
    assert "all good" in run(
        "data", "check", path, "heldout", "--root", folder, "--report", tmp_path / "none"
    )
    assert not (tmp_path / "none").exists()
    assert "Did you mean" in run("data", "check", path, "captoins", "--root", folder, code=2)


def test_several_wrong_things_in_a_recipe_are_reported_at_once_with_their_lines(recipe, scenes):
    recipe.write_text(
        DIRECT.replace("seed: 5", "seed: -1")
        .replace("{grid: 3", "{gird: 3")
        .replace("samples: 4}", "smples: 4}")
    )
    text = run("train", recipe, "--root", scenes, "--out", recipe.parent / "run", code=2)
    assert "mine.yaml:3" in text and "smples" in text and "samples" in text
    assert not (recipe.parent / "run").exists(), "nothing is written before all is checked"


def test_bad_records_and_images_name_file_and_record(recipe, scenes, tmp_path):
    rows = json.loads((scenes / "finetune.json").read_text())[:6]
    rows[1]["conversations"] = []
    rows[2]["conversations"][0]["value"] = "no marker"
    rows[3]["image"] = "images/train/absent.jpg"
    rows[4]["image"] = 7
    (tmp_path / "bad.json").write_text(json.dumps(rows))
    words = ("--root", scenes, "--set", f"data.questions.records={tmp_path / 'bad.json'}")
    text = run("check", recipe, *words, code=2)
    for row in (1, 2, 4):
        assert f"record {row}" in text
    rows = [rows[0], rows[3]]
    (tmp_path / "bad.json").write_text(json.dumps(rows))
    assert "absent.jpg" in run("check", recipe, *words, code=2)


def test_an_empty_data_set(recipe, scenes, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    text = run(
        "check", recipe, "--root", scenes, "--set", f"data.questions.records={tmp_path / 'none.json'}", code=2
    )
    assert "records/empty" in text


def test_a_broken_image_in_the_middle_of_a_run_is_reported_with_its_record(recipe, scenes, tmp_path):
    import shutil

    shutil.copytree(scenes, tmp_path / "scenes")
    for image in (tmp_path / "scenes" / "images" / "train").iterdir():
        image.write_bytes(image.read_bytes()[:100])
    text = run("train", recipe, "--root", tmp_path / "scenes", "--out", tmp_path / "run", code=2)
    assert "images/train" in text


def test_a_folder_in_use_is_refused(trained, scenes):
    words = ("train", trained.parent / "mine.yaml", "--root", scenes, "--out", trained)
    assert "run/exists" in run(*words, code=2)
    assert "make-scenes" not in run("data", "make-scenes", scenes, code=2)


def test_missing_files_are_reported(tmp_path):
    run("train", tmp_path / "none.yaml", code=2)
    run("eval", tmp_path, code=2)
    run("chat", tmp_path, "--prompt", "x", code=2)
    run("diff", tmp_path / "a.yaml", tmp_path, code=2)
    run("data", "make-scenes", tmp_path / "x", "--count", 3, code=2)


def test_a_damaged_model_is_reported(trained, tmp_path):
    import shutil

    shutil.copytree(trained / "model" / "finetune", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "model/damaged" in run("chat", tmp_path / "model", "--prompt", "x", code=2)
    (tmp_path / "model" / "config.json").write_text("{}")
    assert "weights/architecture" in run("chat", tmp_path / "model", "--prompt", "x", code=2)


def test_a_bug_of_ours_exits_1_with_its_traceback(monkeypatch, tmp_path):
    code = (
        "import lmmkit.recipe.diff, lmmkit.recipe, sys\n"
        "def boom(a, b, cut): raise ZeroDivisionError('ours')\n"
        "lmmkit.recipe.diff = boom\n"
        "sys.argv = ['lmmkit', 'diff', 'quickstart', 'quickstart']\n"
        "from lmmkit.cli import main\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 1 and "ZeroDivisionError: ours" in result.stderr
