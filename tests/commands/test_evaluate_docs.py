"""What docs/evaluation.md and docs/benchmarks.md print: commands run as written, folders are looked in as listed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from lmmkit.evaluate.answers.locate import official_items
from lmmkit.evaluate.benchmarks.names import BENCHMARKS
from lmmkit.evaluate.judge import JudgeResponse
from lmmkit.evaluate.questions import asking
from lmmkit.evaluate.questions.asking import Reply
from lmmkit.runs.files import read_jsonl
from tests.test_cli import run

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXTS = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("evaluation", "benchmarks")}
COMMANDS = {
    name: re.findall(r"^    (lmmkit .+?)(?:   .*)?$", text, re.MULTILINE) for name, text in TEXTS.items()
}


@pytest.fixture(scope="module")
def home(answering, official, tmp_path_factory):
    """Writes everything that the commands name, in one folder."""
    home = tmp_path_factory.mktemp("docs")
    for name in ("mine", "a", "b"):
        shutil.copytree(answering, home / "runs" / name)
    shutil.copytree(answering, home / "RUN")
    (home / "official").symlink_to(official)
    (home / "FILES").symlink_to(official)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "replies", answer)
        for model in ("runs/a", "runs/b", "RUN"):
            words = ["--on", "pope,gqa,mm-vet", "--files", official, "--probe"]
            run("eval", home / model, *words)
    run("model", "export", answering, home / "MODEL")
    run("model", "export", answering, home / "FOLDER", "--format", "llava")
    answers = read_jsonl(home / "RUN/answers/finetune/pope/answers.jsonl")
    own = [a for a in answers if a["condition"] == "own"]
    lines = [{"question_id": int(a["id"]), "text": "Yes"} for a in own]
    (home / "their.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for model, name in (("runs/a", "lines.jsonl"), ("RUN", "responses.jsonl")):
        requests = read_jsonl(home / model / "answers/finetune/mm-vet/judge_requests.jsonl")
        responses = [{"hash": r["hash"], "text": "0.5", "judge": "j", "date": "2026-11-28"} for r in requests]
        (home / name).write_text("".join(json.dumps(line) + "\n" for line in responses))
    return home


def answer(chat_model, questions, **more):
    """Answers in place of the model, which has nothing to say."""
    return [Reply("Yes" if q.key[1] != "1" else "No", (7,), False) for q in questions]


def test_the_pages_have_commands():
    assert len(COMMANDS["evaluation"]) >= 9 and len(COMMANDS["benchmarks"]) >= 4


@pytest.mark.parametrize("command", [each for several in COMMANDS.values() for each in several])
def test_a_command_runs_as_written(home, monkeypatch, command):
    monkeypatch.chdir(home)
    monkeypatch.setattr(asking, "replies", answer)
    program, *words = shlex.split(command)
    text = run(*words)
    assert program == "lmmkit" and text.strip()
    if "--responses" in words:
        assert "status scored" in text
    if words[:2] == ["answers", "score"]:
        assert "12 of 12 answered" in text and "matched by id" in text


def test_the_judge_in_python_runs_as_written(official, tmp_path):
    (code,) = re.findall(r"In Python, [^\n]*:\n\n((?:    .*\n|\n)+)", TEXTS["benchmarks"])
    benchmark = BENCHMARKS["mm-vet"]()
    items = official_items(benchmark, official / "mm-vet", "test")
    names = {
        "benchmark": benchmark, "items": items, "answers": {item.id: "x" for item in items},
        "requests": tmp_path / "requests.jsonl", "responses": tmp_path / "responses.jsonl",
    }  # fmt: skip
    judge = benchmark.judge(items, names["answers"])
    lines = [
        {"hash": judge.request(item.id, n, 1).hash, "text": "1.0", "judge": "j"}
        for item in items
        for n in (1, 2, 3)
    ]
    names["responses"].write_text("".join(json.dumps(line) + "\n" for line in lines))
    exec("\n".join(line.removeprefix("    ") for line in code.splitlines()), names)
    assert names["figures"]["score"].value == 1.0 and names["requests"].read_text() == ""
    assert JudgeResponse.__dataclass_fields__.keys() >= {"hash", "text", "judge"}


MOVED = [
    ("vqav2", "v2_OpenEnded_mscoco_val2014_questions.json", "Questions/"),
    ("vqav2", "v2_mscoco_val2014_annotations.json", "Annotations/"),
    ("gqa", "testdev_balanced_questions.json", "questions/"),
    ("gqa", "testdev_balanced_questions.json", "questions1.2/"),
    ("gqa", "testdev_balanced_questions.json", "data/"),
    ("gqa", "images", "data/"),
    ("vizwiz", "val.json", "Annotations/"),
    ("scienceqa", "problems.json", "data/"),
    ("scienceqa", "pid_splits.json", "data/"),
    ("textvqa", "train_images", "train_val_images/"),
    ("pope", "coco_pope_random.json", "coco/"),
    ("pope", "coco_pope_popular.json", "output/coco/"),
]


def section(name: str) -> str:
    """Returns the section of a benchmark."""
    return TEXTS["benchmarks"].split(f"\n## `{name}`\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(("name", "file", "below"), MOVED)
def test_files_are_found_in_the_listed_folders(official, tmp_path, name, file, below):
    assert file in section(name) and below in section(name)
    made = BENCHMARKS[name]()
    want = official_items(made, official / name, made.splits[0])
    shutil.copytree(official / name, tmp_path / name)
    (tmp_path / name / below).mkdir(parents=True)
    shutil.move(tmp_path / name / file, tmp_path / name / below / file)
    got = official_items(made, tmp_path / name, made.splits[0])
    assert [(item.id, item.prompt, item.gold) for item in got] == [(item.id, item.prompt, item.gold) for item in want]  # fmt: skip


def test_images_of_scienceqa_and_records_of_mmmu_as_listed(official, tmp_path):
    from pyarrow import parquet

    shutil.copytree(official / "scienceqa", tmp_path / "scienceqa")
    shutil.move(tmp_path / "scienceqa/images/test", tmp_path / "scienceqa/test")
    items = official_items(BENCHMARKS["scienceqa"](), tmp_path / "scienceqa", "test")
    assert sum(bool(item.images) for item in items) == 2 and "or test/5/image.png" in section("scienceqa")

    want = official_items(BENCHMARKS["mmmu"](), official / "mmmu", "validation")
    rows = [
        row
        for path in sorted((official / "mmmu").glob("*/*.parquet"))
        for row in parquet.ParquetFile(path).read().to_pylist()
    ]
    for i, row in enumerate(rows):
        path = tmp_path / "mmmu/images" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image_1"]["bytes"])
        row["image_1"] = f"images/{i}.png"
    (tmp_path / "mmmu/validation.json").write_text(json.dumps(rows))
    got = official_items(BENCHMARKS["mmmu"](), tmp_path / "mmmu", "validation")
    assert [(item.id, item.prompt, item.gold) for item in got] == [(item.id, item.prompt, item.gold) for item in want]  # fmt: skip
    (tmp_path / "mmmu/validation.json").unlink()
    (tmp_path / "mmmu/validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert official_items(BENCHMARKS["mmmu"](), tmp_path / "mmmu", "validation") == got
    assert all(name in section("mmmu") for name in ("validation.jsonl", "validation.json", "answer_dict_val.json"))  # fmt: skip


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_section_of_a_benchmark_names_its_splits_files_and_headline(official, name):
    made, text = BENCHMARKS[name](), section(name)
    (row,) = re.findall(rf"^\| `{name}` \| ([^|]+) \|", TEXTS["benchmarks"], re.MULTILINE)
    assert tuple(row.split(", ")) == made.splits
    assert f"`{made.headline}`" in text
    for path in (official / name).iterdir():
        if path.is_file() and "mmbench" not in path.name:
            stem = path.name.replace("test-dev2015", "val2014").replace("test2015", "val2014")
            assert stem in text or path.name in text, path.name
