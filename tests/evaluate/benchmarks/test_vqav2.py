"""VQAv2: files by split, the official evaluation, and the upload that lists all of test2015."""

from __future__ import annotations

import json
import random

import pytest

from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.benchmarks.vqav2 import VqaV2
from lmmkit.evaluate.vqa_text import m4c, vqa_eval
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

VQA = VqaV2()
SUBSETS = {"val": "val2014", "test-dev": "test-dev2015", "test": "test2015"}


def question(id, image=42):
    return {"image_id": image, "question": "Is it sunny?", "question_id": id}


def annotation(id, image=42, answers=("yes",) * 10, **changes):
    listed = [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, 1)]
    return {
        "question_id": id, "image_id": image, "question_type": "is it", "answer_type": "yes/no",
        "multiple_choice_answer": "yes", "answers": listed,
    } | changes  # fmt: skip


def write_questions(folder, split, questions, **changes):
    value = {
        "info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": SUBSETS[split], "license": {},
        "questions": questions,
    } | changes  # fmt: skip
    save(folder / f"v2_OpenEnded_mscoco_{SUBSETS[split]}_questions.json", value)
    images = "val2014" if split == "val" else "test2015"
    touch_images(folder / images, [f"COCO_{images}_{q['image_id']:012d}.jpg" for q in questions])


def write_val(folder, annotations=None, questions=None):
    questions = [question(42000), question(42001), question(7, 9)] if questions is None else questions
    write_questions(folder, "val", questions)
    if annotations is None:
        annotations = [
            annotation(7, 9, ["two"] * 4 + ["2"] * 6, answer_type="number", question_type="how many"),
            annotation(42000),
            annotation(42001, answers=["yes"] * 7 + ["no"] * 3),
        ]
    save(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})


def write_test(folder):
    write_questions(folder, "test-dev", [question(5), question(3)])
    write_questions(folder, "test", [question(1), question(3), question(5), question(9, 10)])


def test_items_have_llava_s_prompt(tmp_path):
    write_val(tmp_path)
    items = load_items(VQA, tmp_path)
    assert [item.id for item in items] == ["42000", "42001", "7"]
    assert items[2].prompt == "Is it sunny?" + SHORT
    assert items[2].images == (str(tmp_path / "val2014/COCO_val2014_000000000009.jpg"),)
    assert items[2].gold == ["two"] * 4 + ["2"] * 6 and items[2].cluster == "9"
    assert items[2].groups == {"answer_type": "number", "question_type": "how many"}


def test_val_is_scored_by_the_official_evaluation(tmp_path):
    write_val(tmp_path)
    items = load_items(VQA, tmp_path)
    found = scored(VQA, items, ["Yes.", "no", "Two"])
    assert found["accuracy"].value == pytest.approx((1.0 + 0.9 + 1.0) / 3), "normalised before it is compared"
    assert found["accuracy/yes/no"].n == 2 and found["accuracy/number"].value == 1.0
    assert found["accuracy/is it"].value == pytest.approx(0.95)
    assert found["accuracy"].chance == pytest.approx(2 / 3) and found["accuracy/number"].chance == 1.0
    assert VQA.upload(items, dict.fromkeys((item.id for item in items), "x")) == {}


def test_where_all_annotators_agree_only_the_lenient_score_normalises_them():
    item = Item(id="1", prompt="?", gold=["The dog."] * 10)
    verdict = VQA.verdict(item, "the dog")
    assert (verdict.parsed, verdict.score, verdict.lenient) == ("dog", 0.0, 1.0)
    verdict = VQA.verdict(Item(id="1", prompt="?", gold=["The dog."] * 9 + ["cat"]), "the dog")
    assert (verdict.score, verdict.lenient) == (1.0, 1.0)


def plain_accuracy(answer, humans):
    """Follows the official loop over records with ids, after the answer was normalised for the upload."""
    answer = m4c(answer).replace("\n", " ").replace("\t", " ").strip()
    records = [
        {"answer": h.replace("\n", " ").replace("\t", " ").strip(), "answer_id": i}
        for i, h in enumerate(humans)
    ]
    if len({record["answer"] for record in records}) > 1:
        for record in records:
            record["answer"] = vqa_eval(record["answer"])
        answer = vqa_eval(answer)
    accuracies = []
    for record in records:
        others = [other for other in records if other != record]
        matching = [other for other in others if other["answer"] == answer]
        accuracies.append(min(1, float(len(matching)) / 3))
    return float(sum(accuracies)) / len(accuracies)


def test_random_answers_are_scored_as_the_official_loop_does():
    draw = random.Random(0)
    pool = [
        "yes",
        "Yes",
        "yes.",
        "no",
        "it's",
        "two",
        "2",
        "a dog",
        "dog",
        "red,white",
        "U.S.",
        "",
        "none",
        "0",
    ]
    items, answers = [], []
    for i in range(10_000):
        humans = draw.choices(draw.choices(pool, k=draw.choice([1, 2, 4])), k=10)
        groups = {"answer_type": draw.choice(["yes/no", "other"]), "question_type": f"type {i % 7}"}
        items.append(Item(id=str(i), prompt="?", gold=humans, cluster=str(i // 3), groups=groups))
        answers.append(draw.choice(pool))
    plain = [plain_accuracy(answer, item.gold) for item, answer in zip(items, answers, strict=True)]
    found = scored(VQA, items, answers)
    assert next(iter(found)) == VQA.headline
    assert found["accuracy"].value == pytest.approx(sum(plain) / len(plain), abs=1e-12)
    for kind, name in (("answer_type", "yes/no"), ("question_type", "type 3")):
        mine = [score for item, score in zip(items, plain, strict=True) if item.groups[kind] == name]
        assert found[f"accuracy/{name}"].value == pytest.approx(sum(mine) / len(mine), abs=1e-12)
    assert found["lenient"].value > found["accuracy"].value


def test_test_dev_is_for_a_server_and_its_upload_lists_all_of_test2015(tmp_path):
    write_test(tmp_path)
    items = load_items(VQA, tmp_path, "test-dev")
    assert [item.id for item in items] == ["5", "3"] and VQA.status(items) == "pending-server"
    assert items[0].images == (str(tmp_path / "test2015/COCO_test2015_000000000042.jpg"),)
    assert scored(VQA, items, ["a", "b"]) == {}
    (content,) = VQA.upload(items, {"5": "The Dog.", "3": "Yes"}).values()
    lines = json.loads(content)
    assert {line["question_id"]: line["answer"] for line in lines} == {1: "", 3: "yes", 5: "dog", 9: ""}
    assert VQA.upload(items[:1], {"5": "dog"}) == {}, "a part of the questions is not for the server"
    assert len(lines) == 4 and all(type(line["question_id"]) is int for line in lines)


def test_the_upload_of_test_has_an_answer_for_every_question(tmp_path):
    write_test(tmp_path)
    items = load_items(VQA, tmp_path, "test")
    answers = {"1": "a", "3": "1,000", "5": "x", "9": "none"}
    (content,) = VQA.upload(items, answers).values()
    assert json.loads(content) == [
        {"question_id": 1, "answer": ""}, {"question_id": 3, "answer": "1000"}, {"question_id": 5, "answer": "x"},
        {"question_id": 9, "answer": "0"},
    ]  # fmt: skip
    del answers["5"]
    assert codes(refused(lambda: VQA.upload(items, answers | {"77": "x"}))) == ["upload-answers"] * 2


def test_files_of_another_split_are_refused(tmp_path):
    write_val(tmp_path)
    write_questions(tmp_path, "val", [question(42000)], data_subtype="train2014")
    problems = refused(lambda: load_items(VQA, tmp_path))
    assert codes(problems) == ["other-version"] * 2, "the subset, and annotations without a question"
    write_test(tmp_path)
    write_questions(tmp_path, "test-dev", [question(5), question(77)])
    (problem,) = refused(lambda: load_items(VQA, tmp_path, "test-dev"))
    assert problem.code == "benchmarks/other-version" and "77" in problem.got
    assert codes(refused(lambda: load_items(VQA, tmp_path, "dev"))) == ["unknown-split"]


@pytest.mark.parametrize(
    "annotations, found",
    [
        ([annotation(42000), annotation(42000)], ["duplicate-id"]),
        ([], ["record", "other-version"]),
        ([annotation(42000), annotation(1)], ["other-version"]),
        ([annotation(42000, image=43)], ["other-version"]),
        ([annotation(42000, answers=["yes"] * 9)], ["record"]),
        ([annotation(42000, answers=[{"answer": "yes", "answer_id": 1}] * 10)], ["record"]),
        ([annotation(42000) | {"answers": [{"answer": "yes", "answer_id": 1}] * 10}], ["record"]),
        (
            [annotation(42000) | {"answers": [{"answer": "yes", "answer_id": i // 2} for i in range(10)]}],
            ["record"],
        ),
        ([annotation(42000) | {"answers": [{"answer": i, "answer_id": i} for i in range(10)]}], ["record"]),
        ([annotation("42000")], ["record", "other-version"]),
    ],
)
def test_bad_annotations_are_refused(tmp_path, annotations, found):
    write_val(tmp_path, annotations, [question(42000)])
    assert codes(refused(lambda: load_items(VQA, tmp_path))) == found


def test_missing_files_pointers_and_images_are_reported_together(tmp_path):
    write_val(tmp_path)
    (tmp_path / "val2014/COCO_val2014_000000000009.jpg").unlink()
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(LFS_TEXT)
    assert codes(refused(lambda: load_items(VQA, tmp_path))) == ["lfs-pointer", "no-images"]
    assert codes(refused(lambda: load_items(VQA, tmp_path / "no"))) == ["no-file"]
    write_questions(tmp_path, "test-dev", [question(5)])
    assert codes(refused(lambda: load_items(VQA, tmp_path, "test-dev"))) == ["no-file"]
