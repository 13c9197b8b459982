"""LLaVA-Bench in the wild: messages to the judge, pairs of grades, ratios of means, pairs that are left out."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest

from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.benchmarks.llava_wild import LlavaWild, official_pair
from lmmkit.evaluate.judge import Judged, JudgeResponse, judged
from tests.support.benchmark_files import POINTER, problems_of, write_images, write_lines

WILD = LlavaWild()
RULES = {
    f"llava_bench_{each}": {"role": "Assistant", "prompt": f"Rate {each}."}
    for each in ("conv", "detail", "complex")
}


def write(folder, questions=3):
    kinds = ("conv", "detail", "complex")
    rows = [
        {"question_id": i, "image": f"{i // 2 + 1:03d}.jpg", "text": f"Where {i}?", "category": kinds[i % 3]}
        for i in range(questions)
    ]
    write_lines(folder / "questions.jsonl", rows)
    captions = [
        {"id": "001", "image": "001.jpg", "caption": ["A beach.", "Sand."]},
        {"image": "002.jpg", "caption": "A dog."},
    ]
    write_lines(folder / "context.jsonl", captions)
    write_lines(
        folder / "answers_gpt4.jsonl",
        [{"question_id": i, "text": f"There {i}.", "answer_id": "x"} for i in range(questions)],
    )
    (folder / "rule.json").write_text(json.dumps(RULES | {"other": 1}))
    write_images(folder / "images", ["001.jpg", "002.jpg"])


def load(folder):
    return list(WILD.items(folder, split="test", cache=folder / "cache"))


def test_the_prompt_is_the_question_and_the_judge_gets_all_sections(tmp_path):
    write(tmp_path)
    items = load(tmp_path)
    assert [item.prompt for item in items] == ["Where 0?", "Where 1?", "Where 2?"]
    assert items[2].images == (str(tmp_path / "images/002.jpg"),) and items[2].groups == {
        "category": "complex"
    }
    judge = WILD.judge(items, {"0": "Here.", "1": "", "2": "x"})
    request = judge.request("0", 1, 1)
    assert (request.judge, request.temperature, request.max_tokens) == ("gpt-4-0314", 0.2, 1024)
    system, user = request.messages
    assert system == {
        "role": "system",
        "content": "You are a helpful and precise assistant for checking the quality of the answer.",
    }
    assert user == {
        "role": "user",
        "content": "[Context]\nA beach.\nSand.\n\n[Question]\nWhere 0?\n\n"
        "[Assistant 1]\nThere 0.\n\n[End of Assistant 1]\n\n[Assistant 2]\nHere.\n\n[End of Assistant 2]\n\n"
        "[System]\nRate conv.\n\n",
    }
    assert "[Context]\nA dog.\n\n" in judge.request("2", 1, 1).messages[1]["content"], (
        "one caption is not cut into letters"
    )
    assert WILD.status(items) == "pending-judge" and WILD.figures(items, []) == {}
    assert WILD.verdict(items[0], "Here.").score is None


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("8 10", (8, 10)), ("8,10", (8, 10)), ("8.5 9\nBoth are good", (8.5, 9)), ("8, 10", None), ("8 10 ", None),
        ("Scores: 8 10", None), ("", None), ("8", None), ("8 9 10", None), ("-1 -1", None), ("nan 5", None),
        ("\n8 10", None), ("8 inf", None),
    ],
)  # fmt: skip
def test_pairs_are_read_from_the_first_line(text, pair):
    assert official_pair(text) == pair


def test_no_figure_before_all_are_judged_and_failed_pairs_are_left_out(tmp_path):
    write(tmp_path)
    items = load(tmp_path)
    judge = WILD.judge(items, {"0": "a", "1": "b", "2": "c"})
    requests = judged(judge, 1).waiting
    texts = ["8 4", "10 9", "no scores"]
    responses = [
        JudgeResponse(hash=r.hash, text=t, judge="j", where="r") for r, t in zip(requests, texts, strict=True)
    ]
    assert WILD.judged_figures(items, judged(judge, 1, responses[:2])) == {}
    done = judged(judge, 1, responses)
    figures = WILD.judged_figures(items, done)
    assert (done.left_out, done.parse_failed, done.scored) == (1, 1, 2)
    assert next(iter(figures)) == WILD.headline
    assert figures["score"].value == pytest.approx(13 / 18) and figures["score"].n == 2
    assert figures["score/conv"].value == 0.5 and "score/complex" not in figures
    assert figures["reference"].value == pytest.approx(0.9) and figures["model"].value == pytest.approx(0.65)


def made(n, runs, seed):
    rng = Random(seed)
    kinds = ("conv", "detail", "complex")
    items = [
        Item(id=str(i), prompt="?", cluster=str(i // 3), groups={"category": kinds[i % 3]}) for i in range(n)
    ]
    grades = [
        {i.id: (float(rng.randint(6, 10)), float(rng.randint(1, 10))) for i in items} for _ in range(runs)
    ]
    return items, Judged(judge="j", grades=tuple(grades), parse_failed=0, waiting=())


def by_the_official_summary(items, grades):
    """Returns the scores in percent as LLaVA's summary prints them, from arrays of reviews."""
    out = {}
    for kind in ("all", "conv", "detail", "complex"):
        reviews = np.array([grades[i.id] for i in items if kind in ("all", i.groups["category"])])
        first, second = (round(x, 3) for x in reviews.mean(axis=0))
        out[kind] = round(second / first * 100, 1)
    return out


def test_ten_thousand_random_grades_score_as_by_the_official_summary():
    items, found = made(3_334, 3, seed=1)
    figures = WILD.judged_figures(items, found)
    runs = [by_the_official_summary(items, grades) for grades in found.grades]
    for number, run in enumerate(runs, start=1):
        assert 100 * figures[f"score/run {number}"].value == pytest.approx(run["all"], abs=0.07)
    for kind in ("conv", "detail", "complex"):
        assert 100 * figures[f"score/{kind}"].value == pytest.approx(
            np.mean([run[kind] for run in runs]), abs=0.07
        )
    exact = [sum(b for _, b in g.values()) / sum(a for a, _ in g.values()) for g in found.grades]
    assert figures["score"].value == pytest.approx(np.mean(exact), abs=1e-12)
    assert figures["score/std over runs"].value == pytest.approx(np.std(exact), abs=1e-12)
    assert figures["score/std over runs"].n == 3


# First lines of the published reviews of LLaVA-1.5-13B, run 1 of 3, with the first letter of a category (o: complex).
# From haotian-liu/LLaVA at 32cebc3, Apache-2.0.
PUBLISHED = """
c 8 10, d 9 6.5, o 8 6, o 9 8.5, c 9 2, c 9 2, d 9 6, o 8 7.5, d 9 7, o 8 9, o 8 9, c 10 10, c 8 9, o 9 7, d 8 3, o 8 9,
c 9 8.5, d 9 6, o 9 8.5, d 8 4, o 9 8.5, c 8 9, o 8 7.5, o 9 7.5, o 9 8.5, d 9 6, o 8 7, c 9 9, c 10 10, c 9 2, d 9 3,
o 8 5, c 10 10, o 9 7.5, o 6 9, o 9 6, c 8 4, d 9 3, o 9 4, d 9 3, o 9 2, c 9 1, o 9 6, c 9 7, o 9 7, d 9 2, o 9 6, d 8 5,
o 9 5, c 4 6, o 9 6, c 9 1, d 9 5, o 8 9, c 10 10, d 9 6, o 9 7, d 9 4, o 9 9, o 8 6
"""


def test_published_reviews_give_the_published_score():
    """Checks the first of three published runs, which have 72.8, 72.7 and 72.1; the paper reports their mean, 72.5."""
    rows = [each.split(maxsplit=1) for each in PUBLISHED.replace("\n", " ").split(",")]
    kinds = {"c": "conv", "d": "detail", "o": "complex"}
    items = [
        Item(id=str(i), prompt="?", cluster=str(i), groups={"category": kinds[kind]})
        for i, (kind, _) in enumerate(rows)
    ]
    grades = {str(i): official_pair(text.strip()) for i, (_, text) in enumerate(rows)}
    figures = WILD.judged_figures(items, Judged(judge="j", grades=(grades,), parse_failed=0, waiting=()))
    assert [figures[f"score/{kind}"].n for kind in ("conv", "detail", "complex")] == [17, 15, 28]
    assert round(100 * figures["score"].value, 1) == 72.8 and figures["score"].n == 60
    half = 50 * (figures["score"].high - figures["score"].low)
    assert 1.96 * 3.5 < half < 1.96 * 4.2, "the standard error is 3.8 to 3.9 points"


def test_the_interval_is_that_of_drawing_images():
    items, found = made(60, 1, seed=2)
    figure = WILD.judged_figures(items, found)["score"]
    pairs = np.array([found.grades[0][item.id] for item in items]).reshape(20, 3, 2).sum(axis=1)
    draws = np.random.default_rng(0).integers(20, size=(4000, 20))
    ratios = pairs[draws, 1].sum(axis=1) / pairs[draws, 0].sum(axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    assert figure.high - figure.low == pytest.approx(high - low, rel=0.1)


def test_all_that_is_wrong_is_reported_at_once(tmp_path):
    write(tmp_path)
    write_lines(
        tmp_path / "answers_gpt4.jsonl", [{"question_id": 0, "text": "x"}, {"question_id": 9, "text": "x"}]
    )
    rows = [
        {"question_id": 0, "image": "001.jpg", "text": "a", "category": "conv"},
        {"question_id": 0, "image": "003.jpg", "text": "b", "category": "chat"},
        {"question_id": 2, "text": "c", "category": "conv"},
    ]
    write_lines(tmp_path / "questions.jsonl", rows)
    (tmp_path / "rule.json").write_text(json.dumps({k: v for k, v in RULES.items() if "conv" not in k}))
    (tmp_path / "context.jsonl").write_bytes(POINTER)
    codes = [p.code for p in problems_of(lambda: load(tmp_path))]
    assert sorted(codes) == sorted(
        [
            "benchmarks/record",  # question 2 without image
            "benchmarks/record",  # category chat
            "benchmarks/record",  # no rule for conv
            "benchmarks/duplicate-id",
            "benchmarks/other-version",  # answers to 9
            "benchmarks/lfs-pointer",
            "benchmarks/no-images",
        ]
    )
    for name in ("rule.json", "context.jsonl", "answers_gpt4.jsonl", "questions.jsonl"):
        (tmp_path / name).unlink()
    assert [p.code for p in problems_of(lambda: load(tmp_path))] == ["benchmarks/no-file"] * 4


def test_the_judge_needs_an_answer_to_each_question(tmp_path):
    write(tmp_path)
    problems = problems_of(lambda: WILD.judge(load(tmp_path), {"0": "a", "7": "b"}))
    assert [p.code for p in problems] == ["benchmarks/upload-answers"] * 2
