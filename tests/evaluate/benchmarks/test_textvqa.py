"""TextVQA: the prompt with and without OCR tokens, and the soft accuracy of M4C."""

from __future__ import annotations

import random

import pytest

from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.benchmarks.textvqa import NO_OCR, TextVqa
from lmmkit.evaluate.vqa_text import m4c
from tests.support.vqa_examples import (
    LFS_TEXT,
    SHORT,
    codes,
    load_items,
    refused,
    save,
    scored,
    touch_images,
)

TEXT = TextVqa()
QUESTIONS, TOKENS = "TextVQA_0.5.1_val.json", "TextVQA_Rosetta_OCR_v0.2_val.json"


def question(id, image="003a", **changes):
    return {
        "question_id": id, "question": "what is the Brand?", "image_id": image, "answers": ["Nokia"] * 10,
        "question_tokens": ["what"], "image_classes": ["Phone"], "set_name": "val",
    } | changes  # fmt: skip


DATA = [question(34602), question(34603, "b7", answers=["yes"] * 3 + ["no"] * 7), question(34604)]
OCR = [{"image_id": "003a", "ocr_tokens": ["DAKOTA,", 'a "b"', "é"]}, {"image_id": "b7", "ocr_tokens": []}]


def write(folder, data=DATA, ocr=OCR, **more):
    save(folder / QUESTIONS, {"dataset_type": "val", "dataset_name": "textvqa", "data": data} | more)
    save(folder / TOKENS, {"dataset_type": "val", "data": ocr})
    touch_images(folder / "train_images", ["003a.jpg", "b7.jpg"])


def test_items_have_llava_s_prompt_with_ocr_tokens(tmp_path):
    write(tmp_path)
    items = load_items(TEXT, tmp_path)
    assert items[0].prompt == 'What is the brand?\nReference OCR token: DAKOTA,, a "b", é' + SHORT
    assert items[1].prompt == "What is the brand?\nReference OCR token: " + SHORT, (
        "no tokens: the line remains"
    )
    assert [item.prompt.count("\n") for item in items] == [2, 2, 2]
    assert [(item.id, item.cluster) for item in items] == [
        ("34602", "003a"),
        ("34603", "b7"),
        ("34604", "003a"),
    ]
    assert items[1].images == (str(tmp_path / "train_images/b7.jpg"),)
    assert [item.groups["ocr"] for item in items] == ["OCR tokens", "OCR without tokens", "OCR tokens"]


def test_the_split_without_ocr_needs_no_file_of_tokens(tmp_path):
    write(tmp_path)
    (tmp_path / TOKENS).unlink()
    items = load_items(TEXT, tmp_path, NO_OCR)
    assert items[0].prompt == "What is the brand?" + SHORT
    found = scored(TEXT, items, ["nokia"] * 3)
    assert found["accuracy/prompt without OCR"].value == found["accuracy"].value
    (problem,) = refused(lambda: load_items(TEXT, tmp_path))
    assert problem.code == "benchmarks/no-file" and TOKENS in problem.where


def test_an_image_without_a_record_of_tokens_has_none(tmp_path):
    many = [question(i, f"{i:02d}") for i in range(20)]
    touch_images(tmp_path / "train_images", [f"{i:02d}.jpg" for i in range(20)])
    write(tmp_path, many, [{"image_id": f"{i:02d}", "ocr_tokens": ["x"]} for i in range(19)])
    items = load_items(TEXT, tmp_path)
    assert items[19].groups["ocr"] == "OCR without tokens" and items[19].prompt.split("\n")[1].endswith(": ")
    write(tmp_path, many, [{"image_id": f"{i:02d}", "ocr_tokens": ["x"]} for i in range(9)])
    (problem,) = refused(lambda: load_items(TEXT, tmp_path))
    assert problem.code == "benchmarks/other-version" and "09, 10, 11" in problem.got


def plain_score(answer, humans):
    """Follows M4C's evaluator: the score of each answer that a human gave."""
    scores = {}
    normal = [m4c(human) for human in humans]
    for unique in set(normal):
        each = []
        for i in range(10):
            matching = [other for j, other in enumerate(normal) if j != i and other == unique]
            each.append(min(1, float(len(matching)) / 3))
        scores[unique] = sum(each) / len(each)
    return scores.get(m4c(answer), 0.0)


def test_random_answers_are_scored_as_the_official_loop_does():
    draw = random.Random(0)
    pool = [
        "Nokia",
        "nokia.",
        "the Nokia",
        "10:30",
        "1,000",
        "1000",
        "two",
        "2",
        "",
        "it's",
        "its",
        "stop-sign",
    ]
    items, answers = [], []
    for i in range(10_000):
        humans = draw.choices(draw.choices(pool, k=3), k=10)
        items.append(
            Item(id=str(i), prompt="?", gold=humans, cluster=str(i // 2), groups={"ocr": f"{i % 2}"})
        )
        answers.append(draw.choice(pool))
    found = scored(TEXT, items, answers)
    plain = [plain_score(answer, item.gold) for item, answer in zip(items, answers, strict=True)]
    assert found["accuracy"].value == pytest.approx(sum(plain) / len(plain), abs=1e-12)
    assert found["accuracy/1"].value == pytest.approx(sum(plain[1::2]) / 5000, abs=1e-12)
    constants = {a: sum(plain_score(a, item.gold) for item in items[:300]) / 300 for a in pool}
    assert scored(TEXT, items[:300], answers[:300])["accuracy"].chance == pytest.approx(
        max(constants.values())
    )


def test_the_verdict():
    item = Item(id="1", prompt="?", gold=["Nokia"] * 2 + ["no"] * 8)
    assert (
        TEXT.verdict(item, "the NOKIA.").parsed == "nokia" and TEXT.verdict(item, "the NOKIA.").score == 0.6
    )
    assert TEXT.verdict(item, "the").parsed is None and TEXT.verdict(item, "the").score == 0.0


@pytest.mark.parametrize(
    "data, found",
    [([question(1), question(1)], "duplicate-id"), ([question(1, answers=["a"] * 9)], "record"),
     ([question(1, answers=["a"] * 9 + [3])], "record"), ([question("1")], "record"), ([question(1, image=7)], "record")],
)  # fmt: skip
def test_bad_questions_are_refused(tmp_path, data, found):
    write(tmp_path, data)
    assert found in codes(refused(lambda: load_items(TEXT, tmp_path)))


def test_files_of_another_split_pointers_and_missing_images_are_reported_together(tmp_path):
    write(tmp_path, dataset_type="test")
    (tmp_path / "train_images/b7.jpg").unlink()
    (tmp_path / TOKENS).write_text(LFS_TEXT)
    problems = refused(lambda: load_items(TEXT, tmp_path))
    assert sorted(codes(problems)) == ["lfs-pointer", "no-images", "other-version"]
    write(tmp_path, ocr=[{"image_id": "003a", "ocr_tokens": [1]}, {"image_id": "b7", "ocr_tokens": "x"}])
    problems = refused(lambda: load_items(TEXT, tmp_path))
    assert codes(problems).count("record") == 2
