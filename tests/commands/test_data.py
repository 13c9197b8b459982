"""`lmmkit data`: what is supervised without colour, and a report or a data set that cannot be written."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import pytest

from lmmkit.commands.support import data_check
from lmmkit.scenes import write as scenes_write
from lmmkit.scenes import write_scenes
from tests.conftest import DIRECT
from tests.test_cli import run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(DIRECT)
    return path


def test_what_is_supervised_is_shown_without_colour(recipe, scenes, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = run("data", "show", recipe, "questions", "--root", scenes, "--count", 1)
    marked = [re.sub("·", "", part) for part in re.findall(r"\[\[(.*?)\]\]", text)]
    record = json.loads((scenes / "finetune.json").read_text())[0]
    answers = [turn["value"] for turn in record["conversations"] if turn["from"] == "gpt"]
    assert len(marked) == len(answers)
    for part, answer in zip(marked, answers, strict=True):
        assert answer.split()[0] in part.replace("\u2581", " ")
    assert "[image x 9]" in text and "[[[" not in text


def test_a_report_that_cannot_be_written_does_not_hide_what_is_wrong(recipe, scenes, tmp_path):
    rows = json.loads((scenes / "pretrain.json").read_text())
    rows[3]["conversations"] = []
    (tmp_path / "bad.json").write_text(json.dumps(rows))
    words = (
        "data",
        "check",
        recipe,
        "captions",
        "--root",
        scenes,
        "--set",
        f"data.captions.records={tmp_path / 'bad.json'}",
    )
    report = tmp_path / "mine.yaml" / "bad.jsonl"
    text = run(*words, "--report", report, code=2)
    assert "record 3" in text and "files/cannot-write" in text and str(report) in text
    skip = ("--set", "data.captions.bad_records=skip", "--set", "data.captions.bad_share=0.5")
    text = run(*words, *skip, "--report", report, code=3)
    assert "1 bad ones, which" in text and "files/cannot-write" in text


def test_a_disk_that_is_full_when_the_report_is_closed_is_reported(recipe, scenes, tmp_path, monkeypatch):
    report = data_check.CheckReport(tmp_path / "x.jsonl")

    class Full:
        def write(self, text):
            return len(text)

        def close(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    report._file = Full()  # type: ignore[assignment]
    with report:
        pass
    assert report.failed is not None and "No space left" in report.failed.problems[0].got


def test_scenes_that_cannot_be_written_leave_nothing(tmp_path, monkeypatch):
    def full(scene, directory):
        raise OSError(errno.ENOSPC, "No space left on device", str(directory))

    monkeypatch.setattr(scenes_write, "save_image", full)
    with pytest.raises(OSError, match="No space"):
        write_scenes(tmp_path / "scenes", count=100, heldout=20)
    assert not list((tmp_path / "scenes").iterdir())
    text = run("data", "make-scenes", tmp_path / "scenes", "--count", 100, "--heldout", 20, code=3)
    assert "files/cannot-write" in text and not list((tmp_path / "scenes").iterdir())


def test_an_image_takes_the_rows_that_the_recipe_s_reducer_gives_it(recipe, scenes, tmp_path):
    file = tmp_path / "keep_tokens.py"
    file.write_text((ROOT / "plugins" / "lmmkit_zoo" / "keep_tokens.py").read_text())
    text = DIRECT.replace("plugins:\n", f"plugins:\n  keep_tokens: {{use: {file}, count: 4}}\n", 1)
    recipe.write_text(text.replace("{kind: mlp2x_gelu}", "{kind: mlp2x_gelu, reduce: keep_tokens}"))
    asked = ("data", "show", recipe, "questions", "--root", scenes, "--count", 1)
    assert "[image x 4]" in run(*asked, "--trust-files")
    assert "plugin/untrusted-file" in run(*asked, code=2)


def test_biased_scenes_from_the_command_line(tmp_path):
    words = ("data", "make-scenes", tmp_path / "world", "--count", 100, "--heldout", 20)
    text = run(*words, "--kinds", "count", "--questions", 2, "--text-records", 9, code=2)
    assert "3 problems" in text and "scenes/needs-bias" in text and not (tmp_path / "world").exists()
    text = run(*words, "--bias", 1.5, "--kinds", "count,colour/plaice", code=2)
    assert "scenes/bias" in text and "scenes/unknown-kind" in text and "colour/place" in text
    options = ("--bias", 0.9, "--kinds", "presence,colour/place", "--questions", 2, "--text-records", 9)
    text = run(*words, *options)
    world = json.loads((tmp_path / "world" / "scenes.json").read_text())
    settings = {key: world["parameters"][key] for key in ("bias", "kinds", "questions", "text_records")}
    assert settings == {"bias": 0.9, "kinds": ["colour/place", "presence"], "questions": 2, "text_records": 9}
    assert len(json.loads((tmp_path / "world" / "text.json").read_text())) == 9
    balanced = world["questions"]["heldout_balanced.json"]
    assert f"{balanced['number']} questions" in text and f"{100 * balanced['prior']:.1f} %" in text
    found = json.loads(run("data", "make-scenes", tmp_path / "again", *words[3:], *options, "--json"))
    assert found["parameters"] == world["parameters"] and found["sha256"] == world["sha256"]
