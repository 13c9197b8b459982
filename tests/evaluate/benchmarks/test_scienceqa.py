"""ScienceQA: LLaVA's prompt, its parser, and the two denominators."""

from __future__ import annotations

import random

import pytest

from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.benchmarks.scienceqa import ScienceQa, official_letter
from tests.support.vqa_examples import LFS_TEXT, codes, load_items, refused, save, scored, touch_images

SCIENCE = ScienceQa()
ASK = "\nAnswer with the option's letter from the given choices directly."
VECTORS = {
    "A": "A", "E": "E", "F": None, "B.": None, "B. red": "B", "B.red": None, "B. ": "B", "b": None, "": None,
    "The answer is C.": "C", "The answer is C": None, "The answer is C, I think": "C", "I say: The answer is D.": "D",
    "The answer is A. The answer is B.": None, "B is the run-on sentence.": None, "The answer is Z.": "Z", "AB": None,
}  # fmt: skip


def problem(**changes):
    return {
        "question": "Which?", "choices": ["x", "y"], "answer": 1, "hint": "", "image": None, "task": "closed choice",
        "grade": "grade8", "subject": "language science", "topic": "t", "category": "c", "skill": "s", "lecture": "",
        "solution": "", "split": "test",
    } | changes  # fmt: skip


PROBLEMS = {
    "4": problem(),
    "5": problem(
        image="image.png", hint="Two lines.\nRead them.", choices=["p", "q", "r"], answer=0, grade="grade3"
    ),
    "11": problem(hint="Select one.", answer=0, subject="social science"),
    "20": problem(split="val", image="image.png"),
}


def write(folder, problems=PROBLEMS, splits=None):
    save(folder / "problems.json", problems)
    splits = {"test": ["5", "4", "11"], "val": ["20"], "train": []} if splits is None else splits
    save(folder / "pid_splits.json", splits)
    touch_images(folder / "images", ["test/5/image.png", "val/20/image.png"])


def test_items_have_llava_s_prompt_in_official_order(tmp_path):
    write(tmp_path)
    with_image, plain, with_hint = load_items(SCIENCE, tmp_path)
    assert plain.prompt == "Which?\nA. x\nB. y" + ASK
    assert with_image.prompt == "Context: Two lines.\nRead them.\nWhich?\nA. p\nB. q\nC. r" + ASK
    assert with_hint.prompt == "Context: Select one.\nWhich?\nA. x\nB. y" + ASK
    assert (plain.id, plain.images, plain.gold) == ("4", (), "B")
    assert with_image.images == (str(tmp_path / "images/test/5/image.png"),)
    assert with_image.groups == {
        "subject": "language science",
        "context": "context image",
        "grade": "grades 1-6",
    }
    assert with_hint.groups == {
        "subject": "social science",
        "context": "context text",
        "grade": "grades 7-12",
    }
    assert [item.id for item in load_items(SCIENCE, tmp_path, "val")] == ["20"]


@pytest.mark.parametrize("answer, letter", VECTORS.items())
def test_llava_s_parser(answer, letter):
    assert official_letter(answer) == letter


@pytest.mark.parametrize(
    "answer, score, lenient",
    [("B", 1, 1), ("B.", 0, 1), ("(B)", 0, 1), ("b", 0, 1), ("B) y", 0, 1), ("Answer: B", 0, 1), ("B. y", 1, 1),
     ("The answer is B.", 1, 1), ("A", 0, 0), ("A dog", 0, 0), ("", 0, 0), ("Banana", 0, 0)],
)  # fmt: skip
def test_the_lenient_parser_accepts_more(answer, score, lenient):
    verdict = SCIENCE.verdict(Item(id="1", prompt="?", gold="B"), answer)
    assert (verdict.score, verdict.lenient) == (score, lenient)


def test_a_letter_beyond_the_choices_is_wrong():
    item = Item(id="1", prompt="?", gold="B")
    assert SCIENCE.verdict(item, "E").score == 0.0 and SCIENCE.verdict(item, "E").parsed == "E"


def plain_accuracy(items, answers, image_only):
    """Follows LLaVA's loop: fails are wrong, and count."""
    right = n = 0
    for item, answer in zip(items, answers, strict=True):
        if image_only and not item.images:
            continue
        if answer in ["A", "B", "C", "D", "E"]:
            letter = answer
        elif len(answer) >= 3 and answer[0] in "ABCDE" and answer[1] == "." and answer[2] == " ":
            letter = answer[0]
        else:
            at = [
                i for i in range(len(answer)) if answer[i:].startswith("The answer is ") and len(answer) >= i + 16
                and "A" <= answer[i + 14] <= "Z" and answer[i + 15] != "\n"
            ]  # fmt: skip
            letter = answer[at[0] + 14] if len(at) == 1 else "FAILED"
        n += 1
        right += letter == item.gold
    return right / n


def test_random_answers_are_scored_as_the_plain_loop_does():
    draw = random.Random(0)
    items = [
        Item(id=str(i), prompt="?", images=("x",) if draw.random() < 0.4 else (), gold=draw.choice("ABCDE"), cluster=str(i),
             groups={"subject": "s", "context": "c", "grade": "g"})
        for i in range(10_000)
    ]  # fmt: skip
    answers = draw.choices([*VECTORS, *"ABCDE"], k=len(items))
    found = scored(SCIENCE, items, answers)
    assert next(iter(found)) == SCIENCE.headline == "image accuracy"
    assert found["image accuracy"].value == pytest.approx(plain_accuracy(items, answers, True), abs=1e-12)
    assert found["accuracy"].value == pytest.approx(plain_accuracy(items, answers, False), abs=1e-12)
    assert found["image accuracy"].n == sum(bool(item.images) for item in items)
    golds = [item.gold for item in items if item.images]
    assert found["image accuracy"].chance == pytest.approx(max(map(golds.count, "ABCDE")) / len(golds))
    assert found["lenient"].value > found["accuracy"].value


def test_images_and_texts_have_their_own_denominators(tmp_path):
    write(tmp_path)
    items = load_items(SCIENCE, tmp_path)
    found = scored(SCIENCE, items, ["A", "B", "B"])
    assert (found["image accuracy"].value, found["image accuracy"].n) == (1.0, 1)
    assert (found["accuracy"].value, found["accuracy"].n) == (pytest.approx(2 / 3), 3)
    assert found["accuracy/social science"].value == 0.0
    assert found["accuracy/context none"].n == found["accuracy/context text"].n == 1
    assert "image accuracy" not in scored(SCIENCE, items[1:], ["B", "A"]), "no figure without a question"


def test_ids_of_other_files_twice_or_of_other_types_are_refused(tmp_path):
    write(tmp_path, splits={"test": ["5", "4", "4", "99"]})
    assert sorted(codes(refused(lambda: load_items(SCIENCE, tmp_path)))) == ["duplicate-id", "other-version"]
    write(tmp_path, splits={"test": [5, "4"]})
    assert codes(refused(lambda: load_items(SCIENCE, tmp_path))) == ["record"]
    write(tmp_path, splits={"test": []})
    assert codes(refused(lambda: load_items(SCIENCE, tmp_path))) == ["record"]
    write(tmp_path, problems={})
    assert codes(refused(lambda: load_items(SCIENCE, tmp_path))) == ["record"]
    write(tmp_path, splits={"val": ["20"]})
    assert codes(refused(lambda: load_items(SCIENCE, tmp_path))) == ["record"]


@pytest.mark.parametrize(
    "changes, expected",
    [({"choices": ["x"]}, "`choices`: 2 to 5 texts"), ({"choices": ["x", 3]}, "`choices`: 2 to 5 texts"),
     ({"answer": 2}, "`answer`: the number of a choice"), ({"answer": -1}, "`answer`: the number of a choice"),
     ({"split": "val"}, "`split`: test"), ({"image": 3}, "`image`: a text or null")],
)  # fmt: skip
def test_a_bad_question_is_refused(tmp_path, changes, expected):
    write(tmp_path, PROBLEMS | {"4": problem(**changes)})
    problems = refused(lambda: load_items(SCIENCE, tmp_path))
    assert problems[0].code == "benchmarks/record" and problems[0].expected == expected


def test_missing_and_bad_files_are_reported_together(tmp_path):
    write(tmp_path)
    (tmp_path / "images/test/5/image.png").unlink()
    (problem,) = refused(lambda: load_items(SCIENCE, tmp_path))
    assert problem.code == "benchmarks/no-images" and problem.got == "no 5/image.png"
    (tmp_path / "problems.json").write_text(LFS_TEXT)
    (tmp_path / "pid_splits.json").unlink()
    assert sorted(codes(refused(lambda: load_items(SCIENCE, tmp_path)))) == ["lfs-pointer", "no-file"]
