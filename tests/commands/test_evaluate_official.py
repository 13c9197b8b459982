"""`lmmkit eval MODEL --on NAME --files DIR` on each of the twelve benchmarks, in its official format."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from lmmkit.commands.support.common import out
from lmmkit.evaluate.answers.answers_file import read_answers
from lmmkit.evaluate.answers.schema import Answer
from lmmkit.evaluate.benchmarks.names import BENCHMARKS
from lmmkit.evaluate.questions import asking
from lmmkit.evaluate.questions.asking import Reply
from lmmkit.runs.files import read_jsonl
from tests.support.official_benchmarks import WRITERS
from tests.test_cli import run


class Case(NamedTuple):
    """Describes what an evaluation of a benchmark leaves."""

    name: str
    split: str
    n: int
    status: str = "scored"
    upload: tuple[str, ...] = ()
    judge: bool = False

    @property
    def words(self) -> list[str]:
        """Returns the options of the command; the first split is the default."""
        default = self.split == BENCHMARKS[self.name].splits[0]
        return ["--on", self.name, *([] if default else ["--split", self.split])]

    @property
    def task(self) -> str:
        """Returns the name of the task's folder."""
        return self.name if len(self.words) == 2 else f"{self.name}-{self.split}"


MME = ("OCR", "artwork", "celebrity", "code_reasoning", "color", "commonsense_reasoning", "count", "existence", "landmark", "numerical_calculation", "position", "posters", "scene", "text_translation")  # fmt: skip
CASES = [
    Case("vqav2", "val", 3),
    Case("gqa", "testdev", 3),
    Case("vizwiz", "val", 3),
    Case("scienceqa", "test", 3),
    Case("textvqa", "val", 3),
    Case("pope", "coco", 12),
    Case("seed", "all", 4, upload=("seed.jsonl",)),
    Case("mme", "test", 28, upload=tuple(f"{subtask}.txt" for subtask in MME)),
    Case("llava-wild", "test", 3, "pending-judge", judge=True),
    Case("mm-vet", "test", 3, "pending-judge", ("mm-vet.json",), judge=True),
    Case("mmmu", "validation", 30),
    Case("mmbench", "dev", 9, upload=("mmbench.xlsx",)),
]
OTHER_SPLITS = [
    Case("vqav2", "test-dev", 2, "pending-server", ("vqav2_test.json",)),
    Case("vqav2", "test", 4, "pending-server", ("vqav2_test.json",)),
    Case("vizwiz", "test", 2, "pending-server", ("vizwiz_test.json",)),
    Case("mmbench", "test", 9, "pending-server", ("mmbench.xlsx",)),
    Case("textvqa", "val-no-ocr", 3),
    Case("scienceqa", "val", 1),
    Case("seed", "image", 3, upload=("seed.jsonl",)),
    Case("seed", "video", 1, upload=("seed.jsonl",)),
]


def test_all_benchmarks_have_a_case_and_files():
    assert {case.name for case in CASES} == set(BENCHMARKS) == set(WRITERS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_benchmark_from_its_official_files(answering, official, tmp_path, case):
    made = BENCHMARKS[case.name]()
    text = run("eval", answering / "model" / "finetune", *case.words, "--files", official, "--out", tmp_path)
    folder = tmp_path / case.task
    answers = read_answers(folder / "answers.jsonl")
    items = made.items(official / case.name, split=case.split, cache=tmp_path / "cache")
    assert [a.id for a in answers] == [item.id for item in items] and len(answers) == case.n
    assert [a.row for a in answers] == list(range(case.n)) and {a.condition for a in answers} == {"own"}
    assert [(a.question, a.gold) for a in answers] == [(item.prompt, item.gold) for item in items]
    assert any(a.raw for a in answers) and all(a.n_new_tokens <= made.max_new_tokens for a in answers)
    for a, item in zip(answers, items, strict=True):
        verdict = made.verdict(item, a.raw)
        assert (a.parsed, a.score, a.lenient) == (verdict.parsed, verdict.score, verdict.lenient)

    result = json.loads((tmp_path / "results.json").read_text())[case.task]
    assert result["status"] == case.status
    assert (result["coverage"]["expected"], result["coverage"]["answered"]) == (case.n, case.n)
    assert result["coverage"]["unparsed"] == sum(a.parsed is None for a in answers)
    assert result["coverage"]["truncated"] == sum(a.hit_max_tokens for a in answers)
    figures = {name: figure for name, figure in result.items() if isinstance(figure, dict) and "value" in figure}  # fmt: skip
    assert_figures(case, made, figures)
    assert_table(case, made, text)
    assert_upload(case, made, folder, text)
    assert_requests(case, folder, answers, text)


def assert_figures(case: Case, made, figures: dict) -> None:
    """Checks that a scored benchmark has its headline first, and that no figure is empty; others have none."""
    if case.status != "scored":
        assert figures == {}
        return
    assert next(iter(figures)) == made.headline
    assert all(math.isfinite(figure["value"]) and figure["n"] > 0 for figure in figures.values())


def assert_table(case: Case, made, text: str) -> None:
    """Checks what the terminal shows: the table, or why there is none, and the coverage."""
    if case.status == "scored":
        assert made.title in text and made.headline in text and "no score" not in text
    else:
        assert f"{case.task}: {case.status}: no score here" in text and "chance" not in text
    assert f"{case.task}: {case.n} of {case.n} answered" in text
    assert max(map(len, text.splitlines())) < 400, "no raw answer fills the terminal"


def assert_upload(case: Case, made, folder: Path, text: str) -> None:
    """Checks the files for a server against their manifest."""
    assert (folder / "upload").exists() == bool(case.upload)
    if not case.upload:
        return
    assert ("see " in text and "upload/" in text) == (case.status != "scored")
    manifest = json.loads((folder / "upload" / "manifest.json").read_text())
    assert (manifest["benchmark"], manifest["split"], manifest["status"]) == (
        case.name,
        case.split,
        case.status,
    )
    assert manifest["items"] == case.n and manifest["normaliser"] == made.normaliser
    files = {path.name for path in (folder / "upload").iterdir()} - {"manifest.json"}
    assert files == set(case.upload) == set(manifest["files"])
    for name, facts in manifest["files"].items():
        content = (folder / "upload" / name).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def assert_requests(case: Case, folder: Path, answers: list[Answer], text: str) -> None:
    """Checks that a judge is asked three times about each answer."""
    path = folder / "judge_requests.jsonl"
    assert path.exists() == case.judge == ("judge_requests.jsonl" in text)
    if case.judge:
        requests = read_jsonl(path)
        assert [(r["run"], r["item"]) for r in requests] == [(n, a.id) for n in (1, 2, 3) for a in answers]
        raw = {a.id: a.raw for a in answers}
        assert all(raw[r["item"]] in r["messages"][-1]["content"] for r in requests)


RIGHT = {
    "vqav2": lambda gold: gold[0], "gqa": str, "vizwiz": lambda gold: gold[0], "scienceqa": str,
    "textvqa": lambda gold: gold[0], "pope": str.title, "seed": str, "mme": str.title,
    "mmmu": lambda gold: f"({gold['answers'][0]})" if gold["type"] != "open" else gold["answers"][0],
    "mmbench": lambda gold: gold["letter"],
}  # fmt: skip


def plain_headline(name: str, answers: list[dict]) -> float:
    """Returns the figure that papers report, by loops over {"gold", "score", "cluster", "groups", "images", "parsed"}."""
    scores = [a["score"] for a in answers]
    if name == "scienceqa":
        scores = [a["score"] for a in answers if a["images"]]
    if name == "pope":
        subsets = defaultdict(list)
        for a in answers:
            subsets[a["groups"]["subset"]].append((a["parsed"], a["gold"]))
        f1s = []
        for pairs in subsets.values():
            tp, fp, fn = (pairs.count(pair) for pair in (("yes", "yes"), ("yes", "no"), ("no", "yes")))
            precision, recall = tp / (tp + fp), tp / (tp + fn)
            f1s.append(2 * precision * recall / (precision + recall))
        scores = f1s
    if name == "mme":
        subtasks = defaultdict(list)
        for a in answers:
            if a["groups"]["part"] == "perception":
                subtasks[a["groups"]["subtask"]].append(a["score"])
        return sum(100 * sum(pair) / 2 + 100 * (sum(pair) == 2) for pair in subtasks.values())
    if name == "mmbench":
        clusters = defaultdict(list)
        for a in answers:
            clusters[a["cluster"]].append(a["score"])
        scores = [float(sum(turns) == len(turns)) for turns in clusters.values()]
    return sum(scores) / len(scores)


@pytest.mark.parametrize("name", RIGHT)
def test_the_figures_are_those_of_the_answers(answering, official, tmp_path, monkeypatch, name):
    items = {
        item.id: item
        for item in BENCHMARKS[name]().items(
            official / name, split=BENCHMARKS[name].splits[0], cache=tmp_path / "c"
        )
    }
    # the first items are wrong: of several about one question, or of one part, some are right
    wrong = set([item.id for item in items.values() if item.images][: max(1, len(items) // 4)])

    def answered(chat_model, questions, **more):
        texts = ["?" if q.key[1] in wrong else RIGHT[name](items[q.key[1]].gold) for q in questions]
        return [Reply(text, (7,), False) for text in texts]

    monkeypatch.setattr(asking, "replies", answered)
    folder = tmp_path / "o"
    run("eval", answering / "model" / "finetune", "--on", name, "--files", official, "--out", folder)
    answers = read_jsonl(folder / name / "answers.jsonl")
    result = json.loads((folder / "results.json").read_text())[name]
    headline = result[BENCHMARKS[name].headline]["value"]
    assert headline == pytest.approx(plain_headline(name, answers))
    best = 2000 if name == "mme" else 1
    assert 0 < headline < best, "some answers are right, some are not"
    # the same answers in a file of their own, scored without a model
    file = folder / name / "answers.jsonl"
    text = run("answers", "score", name, "--files", official, "--answers", file, "--json")
    scored = json.loads(text)
    assert {k: v for k, v in scored.items() if k in result and k != "coverage"} == {
        k: v for k, v in result.items() if k in scored and k != "coverage"
    }
    assert scored["coverage"]["answered"] == len(items)


@pytest.mark.parametrize("case", OTHER_SPLITS, ids=lambda case: case.task)
def test_another_split(answering, official, tmp_path, monkeypatch, case):
    replies = asking.replies
    monkeypatch.setattr(
        asking, "replies", lambda *words, max_new_tokens, choose: replies(*words, max_new_tokens=9, choose=choose)
    )  # fmt: skip
    made = BENCHMARKS[case.name]()
    text = run("eval", answering / "model" / "finetune", *case.words, "--files", official, "--out", tmp_path)
    result = json.loads((tmp_path / "results.json").read_text())[case.task]
    assert result["status"] == case.status and result["coverage"]["answered"] == case.n
    answers = read_answers(tmp_path / case.task / "answers.jsonl")
    assert {a.split for a in answers} == {case.split} and len(answers) == case.n
    if case.status != "scored":
        assert all(a.score is None and a.gold is None for a in answers)
        assert not any(isinstance(value, dict) and "value" in value for value in result.values())
    assert_table(case, made, text) if case.name != "scienceqa" else None
    assert_upload(case, made, tmp_path / case.task, text)
    if case.task == "vqav2-test-dev":
        lines = json.loads((tmp_path / case.task / "upload" / "vqav2_test.json").read_text())
        assert {line["question_id"]: bool(line["answer"]) for line in lines if line["question_id"] in (5001, 9000)} == {5001: False, 9000: False}  # fmt: skip
        assert len(lines) == 4


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_first_item_alone(answering, official, tmp_path, monkeypatch, case):
    """Marks figures of a part, has no figure of what was not asked, and gives no server a part."""
    monkeypatch.setattr(
        asking, "replies", lambda chat_model, questions, **more: [Reply("Yes", (7,), False) for _ in questions]
    )  # fmt: skip
    monkeypatch.setattr(out, "_width", 160)  # wide enough for a table of each
    words = ["eval", answering / "model" / "finetune", *case.words, "--files", official, "--out", tmp_path]
    text = run(*words, "--limit", 1)
    result = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)[case.name]
    assert (result["coverage"]["expected"], result["coverage"]["of"]) == (1, case.n)
    assert f"1 of 1 answered, the first of {case.n}" in text
    figures = [value for value in result.values() if isinstance(value, dict) and "value" in value]
    assert all(figure["n"] >= 1 for figure in figures)
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert len([row for row in rows if f"(first 1 of {case.n})" in " ".join(row.split())]) == len(figures)
    assert not (tmp_path / case.name / "upload").exists()
    assert not (tmp_path / case.name / "judge_requests.jsonl").exists()
    if case.status != "scored":
        assert f"the files for it need the answers to all {case.n} questions" in text
    text = run(*words)
    assert "(first" not in text and (tmp_path / case.name / "upload").exists() == bool(case.upload)
    assert len(read_jsonl(tmp_path / case.name / "answers.jsonl")) == case.n


PROBED = [
    "pope",
    "scienceqa",
    "vqav2",
    "llava-wild",
    "mmbench",
]  # yes or no, options, open, judged, in a table


@pytest.mark.parametrize("name", PROBED)
def test_the_probe(answering, official, tmp_path, monkeypatch, name):
    replies = asking.replies
    monkeypatch.setattr(
        asking, "replies", lambda *words, max_new_tokens, choose: replies(*words, max_new_tokens=9, choose=choose)
    )  # fmt: skip
    words = ["--on", name, "--files", official, "--out", tmp_path, "--probe"]
    text = run("eval", answering / "model" / "finetune", *words)
    answers = read_answers(tmp_path / name / "answers.jsonl")
    own = [a for a in answers if a.condition == "own"]
    shown = [a.id for a in own if a.images]
    for control in ("blank", "swapped", "none"):
        assert [a.id for a in answers if a.condition == control] == shown
    by_key = {(a.condition, a.id): a for a in answers}
    for id in shown:
        assert by_key["none", id].images == () and len(by_key["swapped", id].images) == 1
        assert by_key["swapped", id].images != by_key["own", id].images
    figures = json.loads((tmp_path / "results.json").read_text())[name]
    changed = [by_key["own", id] for id in shown]
    for control in ("blank", "swapped", "none"):
        n = sum(
            (a.parsed or a.raw) != (by_key[control, a.id].parsed or by_key[control, a.id].raw)
            for a in changed
        )
        assert figures[f"changed_{control}"]["value"] == pytest.approx(n / len(shown))
    lines = read_jsonl(tmp_path / name / "attention.jsonl")
    assert {line["id"] for line in lines} == {a.id for a in own if a.images and a.raw}
    assert figures["image_attention"]["n"] == len(lines)
    headline = BENCHMARKS[name].headline
    if name == "llava-wild":
        assert "visual_gain" not in figures and headline not in figures and "pending-judge" in text
        requests = read_jsonl(tmp_path / name / "judge_requests.jsonl")
        assert len(requests) == 3 * len(own), "the judge grades own answers alone"
    else:
        assert {headline, f"{headline}_blank", f"{headline}_swapped", f"{headline}_none"} <= set(figures)
        gain = [a.score - by_key["blank", a.id].score for a in changed]
        assert figures["visual_gain"]["value"] == pytest.approx(sum(gain) / len(gain))
        leak = [by_key["blank", a.id].score - by_key["none", a.id].score for a in changed]
        assert figures["leakage"]["value"] == pytest.approx(sum(leak) / len(leak))
        for row in ("visual_gain", "leakage", "changed_none", "image_attention"):
            assert f"│ {row}" in text
