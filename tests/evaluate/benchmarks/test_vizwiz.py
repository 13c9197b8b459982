"""VizWiz: LLaVA's prompt, the soft accuracy of the split val, the upload of the split test."""

from __future__ import annotations

import json
import random

import pytest

from lmmkit.evaluate.benchmarks.vizwiz import VizWiz
from lmmkit.evaluate.vqa_text import m4c_accuracy
from tests.support.vqa_examples import LFS_TEXT, codes, load_items, refused, save, scored, touch_images

VIZWIZ = VizWiz()
ASK = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    "\nAnswer the question using a single word or phrase."
)


def record(i, split="val", **changes):
    found = {"image": f"VizWiz_{split}_{i:08d}.jpg", "question": "what is THIS? "}
    if split == "val":
        answers = [{"answer": "mug", "answer_confidence": "yes"}] * 10
        found |= {"answers": answers, "answer_type": "other", "answerable": 1}
    return found | changes


def answers_of(*texts):
    return [{"answer": text, "answer_confidence": "no"} for text in texts]


VAL = [
    record(0),
    record(1, answers=answers_of(*["unanswerable"] * 7, *["Red."] * 3), answer_type="unanswerable"),
]


def write(folder, records, split="val"):
    save(folder / f"{split}.json", records)
    touch_images(folder / split, [each["image"] for each in records])


def test_items_have_llava_s_prompt_and_ids(tmp_path):
    write(tmp_path, VAL)
    first, second = load_items(VIZWIZ, tmp_path)
    assert first.prompt == "What is this? " + ASK, "capitalised, with the space at its end"
    assert (first.id, second.id) == ("0", "1")
    assert second.images == (str(tmp_path / "val/VizWiz_val_00000001.jpg"),)
    assert second.gold == ["unanswerable"] * 7 + ["Red."] * 3 and VIZWIZ.status([first, second]) == "scored"


def test_val_is_scored_by_soft_accuracy(tmp_path):
    write(tmp_path, VAL)
    items = load_items(VIZWIZ, tmp_path)
    found = scored(VIZWIZ, items, ["A mug.", "red"])
    assert (found["accuracy"].value, found["accuracy/unanswerable"].value) == (pytest.approx(0.95), 0.9)
    assert (found["accuracy"].chance, found["accuracy/unanswerable"].chance) == (0.5, 1.0)
    assert VIZWIZ.upload(items, {"0": "mug", "1": "red"}) == {}


def test_random_answers_have_the_mean_of_their_scores(tmp_path):
    draw = random.Random(0)
    pool = ["unanswerable", "Unanswerable.", "mug", "a mug", "no", ""]
    records = [record(i, answers=answers_of(*draw.choices(pool, k=10))) for i in range(500)]
    write(tmp_path, records)
    items = load_items(VIZWIZ, tmp_path)
    answers = draw.choices(pool, k=500)
    scores = [
        m4c_accuracy(a, [h["answer"] for h in r["answers"]]) for a, r in zip(answers, records, strict=True)
    ]
    assert scored(VIZWIZ, items, answers)["accuracy"].value == pytest.approx(sum(scores) / 500)


def test_test_is_for_a_server_and_has_no_figures(tmp_path):
    write(tmp_path, [record(i, "test") for i in range(3)], "test")
    items = load_items(VIZWIZ, tmp_path, "test")
    assert VIZWIZ.status(items) == "pending-server"
    assert scored(VIZWIZ, items, ["mug"] * 3) == {}
    assert (
        VIZWIZ.verdict(items[0], "A Mug.").parsed == "mug" and VIZWIZ.verdict(items[0], "mug").score is None
    )


def test_the_upload_has_every_image_with_a_normalised_answer(tmp_path):
    write(tmp_path, [record(i, "test") for i in range(3)], "test")
    items = load_items(VIZWIZ, tmp_path, "test")
    files = VIZWIZ.upload(items, {"2": "The Dog.", "0": "Unanswerable", "1": ""})
    assert {name: json.loads(content) for name, content in files.items()} == {
        "vizwiz_test.json": [
            {"image": "VizWiz_test_00000000.jpg", "answer": "unanswerable"},
            {"image": "VizWiz_test_00000001.jpg", "answer": ""},
            {"image": "VizWiz_test_00000002.jpg", "answer": "dog"},
        ]
    }
    problems = refused(lambda: VIZWIZ.upload(items, {"0": "x", "1": "x", "7": "x"}))
    assert codes(problems) == ["upload-answers"] * 2


@pytest.mark.parametrize(
    "records, found",
    [([record(0), record(0)], ["duplicate-id"]), ([record(0, answers=answers_of("a"))], ["record"]),
     ([record(0, "test")], ["record"]), ([record(0, image="VizWiz_train_00000000.jpg")], ["other-version"]),
     ([record(0, question=None)], ["record"]), ({"0": record(0)}, ["record"])],
)  # fmt: skip
def test_bad_files_are_refused(tmp_path, records, found):
    save(tmp_path / "val.json", records)
    several = records.values() if isinstance(records, dict) else records
    touch_images(tmp_path / "val", [each["image"] for each in several])
    assert codes(refused(lambda: load_items(VIZWIZ, tmp_path))) == found


def test_missing_files_pointers_and_images_are_reported(tmp_path):
    write(tmp_path, [record(i) for i in range(50)])
    for i in range(10, 50):
        (tmp_path / f"val/VizWiz_val_{i:08d}.jpg").unlink()
    (problem,) = refused(lambda: load_items(VIZWIZ, tmp_path))
    assert problem.got.startswith("no VizWiz_val_00000010.jpg, ") and problem.got.endswith(" and 32 more")
    (tmp_path / "val.json").write_text(LFS_TEXT)
    assert codes(refused(lambda: load_items(VIZWIZ, tmp_path))) == ["lfs-pointer"]
    assert codes(refused(lambda: load_items(VIZWIZ, tmp_path, "test"))) == ["no-file", "no-file"]
