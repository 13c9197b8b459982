"""`lmmkit data`: what is supervised without colour, and a report or a data set that cannot be written."""

from __future__ import annotations

import errno
import json
import re
import sys
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
    assert "1 bad one, which" in text and "files/cannot-write" in text


def test_an_old_report_does_not_outlive_what_it_lists(recipe, scenes, tmp_path):
    report = tmp_path / "bad_records.jsonl"
    report.write_text("{}\n")
    assert "all good" in run("data", "check", recipe, "captions", "--root", scenes, "--report", report)
    assert not report.exists()


def test_a_file_that_ends_too_early_is_not_all_good_with_skip(recipe, scenes, tmp_path):
    text = (scenes / "pretrain.json").read_text()
    (tmp_path / "half.json").write_text(text[: len(text) // 2])
    change = (
        "--set",
        f"data.captions.records={tmp_path / 'half.json'}",
        "--set",
        "data.captions.bad_records=skip",
    )
    for words in (["data", "check", recipe, "captions", "--report", tmp_path / "x"], ["check", recipe]):
        text = run(*words, "--root", scenes, *change, code=2)
        assert "records/unread" in text and "half.json" in text and "all good" not in text
    found = json.loads(run("data", "stats", recipe, "captions", "--root", scenes, *change, "--json"))
    assert found["all"]["reasons"]["records/unread"]["records"] == 1
    words = ("data", "convert", tmp_path / "half.json", tmp_path / "new", "--to", "llava", "--images", scenes)
    assert "records/unread" in run(*words, "--skip-bad", code=2) and not (tmp_path / "new").exists()


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


def test_convert_from_the_command_line(scenes, tmp_path):
    text = run("data", "convert", scenes / "heldout.json", tmp_path / "new", "--to", "parquet")
    assert "read as `llava`" in text and "72 records, 72 images copied" in text
    assert f"{{kind: messages, records: {tmp_path}/new/records.parquet, template" in text
    asked = (
        "data",
        "convert",
        tmp_path / "new" / "records.parquet",
        tmp_path / "back",
        "--to",
        "llava-jsonl",
    )
    found = json.loads(run(*asked, "--json"))
    assert found == json.loads((tmp_path / "back" / "report.json").read_text())
    assert found["records"] == 72 and found["not_carried"] == {} and found["recipe"]["kind"] == "llava"
    rows = [json.loads(line) for line in (tmp_path / "back" / "records.jsonl").read_text().splitlines()]
    assert [{**row, "image": ""} for row in rows] == [
        {**row, "image": ""} for row in json.loads((scenes / "heldout.json").read_text())
    ]
    assert "data/convert-not-empty" in run(*asked, code=2)
    text = run(*asked[:3], tmp_path / "x", *asked[4:], "--refer-images", code=2)
    assert "data/convert-images" in text and not (tmp_path / "x").exists()


def test_convert_names_what_it_refuses_and_leaves_out(scenes, tmp_path):
    good = {
        "talk": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
        "key": "a",
        "tools": [1],
    }
    rows = [good, good | {"talk": good["talk"][::-1], "key": "b"}, good | {"key": "c", "images": "none.png"}]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("data", "convert", tmp_path / "r.jsonl", tmp_path / "new", "--to", "webdataset")
    columns = ("--column", "messages=talk", "--column", "id=key")
    text = run(*asked, "--column", "messages", "--column", "turns=talk", code=2)
    assert "2 problems" in text and "data/convert-column" in text
    text = run(*asked, "--column", "id=key", "--column", "id=other", code=2)
    assert "`id=key` and `id=other`" in text and "1 problem" in text
    text = run(*asked, *columns, code=2)
    assert "r.jsonl:2" in text and "records/no-answer" in text and not (tmp_path / "new").exists()
    text = run(*asked, *columns, "--skip-bad")
    assert "1 record, 0 images" in text and "2 records refused" in text
    assert f"refused: {tmp_path}/r.jsonl:2 (record 1, id 'b')" in text and "[image/file]" in text
    assert "note, of 2 records: `tools` is not read" in text
    assert len((tmp_path / "new" / "refused.jsonl").read_text().splitlines()) == 2


def test_convert_uses_each_option_or_refuses_it(scenes, tmp_path):
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    (tmp_path / "r.json").write_text(json.dumps([{"conversations": talk, "key": "a"}]))
    asked = ("data", "convert", tmp_path / "r.json")
    text = run(*asked, tmp_path / "a", "--to", "webdataset", "--column", "id=key")
    assert "read as `messages`" in text
    text = run(*asked, tmp_path / "x", "--to", "llava", "--column", "id=key", "--from", "llava", code=2)
    assert "data/convert-unused" in text and "got       a data set of kind llava" in text
    shards = ("data", "convert", tmp_path / "a" / "000000.tar", tmp_path / "x", "--to", "llava-jsonl")
    text = run(
        *shards,
        "--column",
        "id=key",
        "--images",
        scenes,
        "--annotations",
        "a.json",
        "--from",
        "webdataset",
        code=2,
    )
    assert (
        "3 problems" in text
        and "error --images" in text
        and "convert-unused" in text
        and not (tmp_path / "x").exists()
    )
    run(*shards)
    assert json.loads((tmp_path / "x" / "records.jsonl").read_text())["id"] == "a"


def test_convert_writes_no_folder_that_cannot_be_renamed(scenes, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    monkeypatch.chdir(tmp_path / "here")
    asked = ("data", "convert", scenes / "heldout.json")
    for place, got in (
        (".", "the current folder"),
        (tmp_path / "here", "the current folder"),
        ("../link", "a link"),
    ):
        text = run(*asked, place, "--to", "llava", code=2)
        assert f"got       {got}\n" in text and "data/convert-not-empty" in text
    assert "files/cannot-write" in run(*asked, "x" * 300, "--to", "llava", code=3)
    assert "files/cannot-write" in run(
        *asked, "../link/../here/../link/" + "y" * 256, "--to", "llava", code=3
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "link"] and not list(
        tmp_path.glob("here/*")
    )


def test_convert_looks_at_its_target_before_it_reads_the_source(scenes, tmp_path, monkeypatch):
    def read(*args, **more):
        raise AssertionError("the source is read")

    monkeypatch.setattr("lmmkit.data.sources.records.open_records", read)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    asked = ("data", "convert", scenes / "heldout.json")
    text = run(
        *asked,
        tmp_path / "full",
        "--to",
        "webdataset",
        "--refer-images",
        "--annotations",
        "a.json",
        "--from",
        "llava",
        code=2,
    )
    assert all(f"data/convert-{name}" in text for name in ("images", "not-empty", "annotations"))
    text = run("data", "convert", tmp_path / "none.json", tmp_path / "full", "--to", "llava", code=2)
    assert "data/convert-not-empty" in text and "records/file" in text
    assert "files/cannot-write" in run(
        *asked, scenes / "heldout.json" / "new" / "er", "--to", "llava", code=3
    )
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "records/no-pyarrow" in run(*asked, tmp_path / "new", "--to", "parquet", code=3)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_convert_reads_official_files(scenes, tmp_path):
    image = json.loads((scenes / "heldout.json").read_text())[0]["image"]
    questions = {"questions": [{"question_id": 5, "image_id": 1, "image": image, "question": "What?"}]}
    annotations = {"annotations": [{"question_id": 5, "image_id": 1, "multiple_choice_answer": "a cat"}]}
    (tmp_path / "q.json").write_text(json.dumps(questions))
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    asked = ("data", "convert", tmp_path / "q.json", tmp_path / "new", "--to", "messages", "--images", scenes)
    text = run(*asked, "--annotations", tmp_path / "a.json")
    assert "read as `vqa`" in text and f"images: {scenes}" in text and "0 images copied" in text
    (row,) = json.loads((tmp_path / "new" / "records.json").read_text())
    assert row["images"] == [image] and row["messages"][1]["content"] == "a cat"
    asked = (
        "data",
        "convert",
        tmp_path / "[q].json",
        tmp_path / "several",
        "--to",
        "messages",
        "--images",
        scenes,
    )
    assert "read as `vqa`" in run(*asked, "--annotations", tmp_path / "[a].json")
    assert "VQA's questions" in run(*asked[:3], tmp_path / "none", *asked[4:], code=2)
    asked = ("data", "convert", tmp_path / "q.json", tmp_path / "x", "--to", "messages", "--from")
    assert "data/convert-annotations" in run(*asked, "vqa", code=2)
    assert "data/convert-annotations" in run(*asked, "coco", "--annotations", tmp_path / "a.json", code=2)
