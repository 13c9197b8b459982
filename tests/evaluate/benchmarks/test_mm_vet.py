"""MM-Vet: the judge's table, grades, five attempts, capabilities, the upload."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest

from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.benchmarks.mm_vet import CAPABILITIES, MmVet, official_grade
from lmmkit.evaluate.judge import Judged, JudgeResponse, judged
from tests.support.benchmark_files import POINTER, problems_of, write_images

VET = MmVet()
EXAMPLES = "Compare.\n\nQuestion | Ground truth | Prediction | Correctness\n--- | --- | --- | ---\nx? | 1 | 2 | 0.0\n"
SCRIPT = f'import sys\nraise SystemExit("never run")\nprompt = """{EXAMPLES}"""\n\n\ndef f(prompt=prompt):\n    pass\n'


def write(folder, rows=None):
    rows = rows or {
        "v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "imagesource": "u", "capability": ["ocr", "math"]},
        "v1_1": {"imagename": "v1_0.png", "question": "Who?", "answer": "Ann<OR>Bo", "imagesource": "u", "capability": ["rec"]},
    }  # fmt: skip
    (folder / "mm-vet.json").write_text(json.dumps(rows))
    (folder / "mm-vet_evaluator.py").write_text(SCRIPT)
    write_images(folder / "images", ["v1_0.png"])


def load(folder):
    return list(VET.items(folder, split="test", cache=folder / "cache"))


def test_the_judge_completes_a_row_below_the_examples_of_the_official_script(tmp_path):
    write(tmp_path)
    items = load(tmp_path)
    assert [(item.id, item.prompt) for item in items] == [("v1_0", "What is x?"), ("v1_1", "Who?")]
    assert items[0].gold == "-1<AND>-5", "each answer repeats it, so it has no examples"
    assert items[0].groups == {"capabilities": "ocr+math"} and items[0].images == (
        str(tmp_path / "images/v1_0.png"),
    )
    judge = VET.judge(items, {"v1_0": "x = -1", "v1_1": "Bo"})
    request = judge.request("v1_0", 1, 1)
    text = EXAMPLES + "\nWhat is x? | -1 <AND> -5 | x = -1 | "
    assert request.messages == ({"role": "user", "content": text},)
    assert (request.judge, request.max_tokens, request.temperature) == ("gpt-4-0613", 3, 0.0)
    assert "| Ann <OR> Bo | Bo | " in judge.request("v1_1", 1, 1).messages[0]["content"]
    again = judge.request("v1_0", 1, 2)
    assert again.messages[0]["content"] == text + "\nPredict the correctness of the answer (digit): "
    assert [judge.request("v1_0", 1, n).temperature for n in range(1, 6)] == [0.0, 0.0, 0.5, 1.0, 1.5]
    assert VET.status(items) == "pending-judge" and VET.figures(items, []) == {}
    assert VET.verdict(items[0], "x").score is None


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("0.5", 0.5), ("1", 1.0), ("0.0 |", 0.0), ("1.0\n", 1.0), (" 0.5", None), ("", None), ("0.5.", None),
        ("1.1", None), ("-0.1", None), ("nan", None), ("Correct", None), ("0.5|", None),
    ],
)  # fmt: skip
def test_a_grade_is_the_number_before_the_first_space(text, grade):
    assert official_grade(text) == (None if grade is None else (grade,))


def test_after_five_attempts_the_grade_is_zero(tmp_path):
    write(tmp_path)
    items = load(tmp_path)
    judge = VET.judge(items, {"v1_0": "a", "v1_1": "b"})
    responses = []
    for attempt in range(1, 6):
        found = judged(judge, 1, responses)
        assert VET.judged_figures(items, found) == {} and {r.attempt for r in found.waiting} <= {1, attempt}
        texts = {"v1_0": "?", "v1_1": "0.8"}
        responses += [
            JudgeResponse(hash=r.hash, text=texts[r.item], judge="j", where="r") for r in found.waiting
        ]
    done = judged(judge, 1, responses)
    assert (
        done.grades == ({"v1_0": (0.0,), "v1_1": (0.8,)},) and done.parse_failed == 5 and len(responses) == 6
    )
    figures = VET.judged_figures(items, done)
    assert figures["score"].value == pytest.approx(0.4) and figures["score/rec"].value == pytest.approx(0.8)
    assert figures["score/math"].value == figures["score/only ocr+math"].value == 0.0


def test_ten_thousand_random_grades_score_as_by_the_official_script():
    rng = Random(4)
    sets = [("rec",), ("ocr", "math"), ("rec", "know", "gen"), ("ocr", "spat"), ("spat",)]
    items = [
        Item(id=f"v1_{i}", prompt="?", cluster=str(i), groups={"capabilities": "+".join(rng.choice(sets))})
        for i in range(2_000)
    ]
    grades = tuple({i.id: (rng.randint(0, 10) / 10,) for i in items} for _ in range(5))
    figures = VET.judged_figures(items, Judged(judge="j", grades=grades, parse_failed=0, waiting=()))
    sums: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for item in items:
        exact = item.groups["capabilities"]
        for name in ("total", f"only {exact}", *exact.split("+")):
            counts[name] = counts.get(name, 0) + 1
            sums.setdefault(name, [0.0] * 5)
            for run in range(5):
                sums[name][run] += grades[run][item.id][0]
    for name, several in sums.items():
        figure = figures["score" if name == "total" else f"score/{name}"]
        assert figure.value == pytest.approx(np.mean(np.array(several) / counts[name]), abs=1e-12)
        assert figure.n == counts[name]
    total = np.array(sums["total"]) / 2_000
    assert figures["score/std over runs"].value == pytest.approx(total.std(), abs=1e-12)
    assert [figures[f"score/run {n}"].value for n in range(1, 6)] == pytest.approx(list(total), abs=1e-12)
    assert next(iter(figures)) == VET.headline and set(CAPABILITIES) == {
        n for n in sums if n != "total" and "only" not in n
    }


def test_an_upload_has_the_official_ids(tmp_path):
    write(tmp_path)
    items = load(tmp_path)
    (data,) = VET.upload(items, {"v1_1": "b", "v1_0": "a"}).values()
    assert json.loads(data) == {"v1_0": "a", "v1_1": "b"} and list(json.loads(data)) == ["v1_0", "v1_1"]
    for call in (VET.upload, VET.judge):
        problems = problems_of(lambda call=call: call(items, {"v1_0": "a", "v1_2": "b"}))
        assert [p.code for p in problems] == ["benchmarks/upload-answers"] * 2


@pytest.mark.parametrize("script", ["def f(:\n", "prompt = 1\n", "x = 'prompt'\n", "\0"])
def test_a_script_without_examples_is_refused(tmp_path, script):
    write(tmp_path)
    (tmp_path / "mm-vet_evaluator.py").write_text(script)
    (problem,) = problems_of(lambda: load(tmp_path))
    assert problem.code == "benchmarks/record" and "mm-vet_evaluator.py" in problem.where


def test_all_that_is_wrong_is_reported_at_once(tmp_path):
    rows = {
        "v1_0": {"imagename": "none.png", "question": "?", "answer": "a", "capability": ["ocr"]},
        "v1_1": {"imagename": "v1_0.png", "question": "?", "answer": "a", "capability": ["sing"]},
        "v1_2": {"imagename": "v1_0.png", "answer": "a", "capability": []},
        "v1_3": {"imagename": "v1_0.png", "question": "?", "answer": "a", "capability": []},
    }
    write(tmp_path, rows)
    (tmp_path / "mm-vet_evaluator.py").write_bytes(POINTER)
    codes = sorted(p.code for p in problems_of(lambda: load(tmp_path)))
    assert codes == [
        "benchmarks/lfs-pointer",
        "benchmarks/no-images",
        "benchmarks/record",
        "benchmarks/record",
        "benchmarks/record",
    ]
    (tmp_path / "mm-vet.json").write_text('{"v1_0": 1, "v1_0": 2}')
    assert "benchmarks/duplicate-id" in [p.code for p in problems_of(lambda: load(tmp_path))]
