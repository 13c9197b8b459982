"""POPE: the official parser, F1 and accuracy of each subset, and the objects that all subsets ask about."""

from __future__ import annotations

import json
import random

import pytest

from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.benchmarks.pope import FIRST_IDS, Pope, yes_or_no
from tests.support.vqa_examples import LFS_TEXT, SHORT, codes, load_items, refused, scored, touch_images

POPE = Pope()
VECTORS = {
    "No": "no", "No, there is not.": "no", "There is no dog": "no", "NO": "yes", "No!": "yes", "": "yes",
    "nothing": "yes", "Not sure": "yes", "I cannot tell": "yes", "Yes. No": "yes", "no\nbecause": "yes",
    "no": "no", "It is not": "no", "n,o": "no", "yes": "yes",
}  # fmt: skip


def line(number, image, thing, label, **more):
    text = f"Is there a {thing} in the image?"
    return {"question_id": number, "image": image, "text": text, "label": label} | more


def files(first: int = 1) -> dict[str, list[dict]]:
    """Returns lines for three subsets about the same objects, and other absent ones; the ids begin at `first`."""
    found = {}
    for subset, absent in (("random", "zebra"), ("popular", "person"), ("adversarial", "fork")):
        asked = [
            ("1.jpg", "dog", "yes"),
            ("1.jpg", absent, "no"),
            ("2.jpg", "cup", "yes"),
            ("2.jpg", absent, "no"),
        ]
        if subset == "random":
            asked.pop()
        found[subset] = [line(first + i, *each) for i, each in enumerate(asked)]
    return found


def write(folder, lines, under="coco"):
    (folder / under).mkdir(parents=True, exist_ok=True)
    for subset, several in lines.items():
        text = "".join(json.dumps(each) + "\n" for each in several)
        (folder / under / f"coco_pope_{subset}.json").write_text(text)
    touch_images(folder / "val2014", ["1.jpg", "2.jpg"])


@pytest.mark.parametrize("first, under", [(1, "coco"), (0, ""), (0, "output/coco")])
def test_items_have_llava_s_order_ids_and_prompt(tmp_path, first, under):
    write(tmp_path, files(first), under)
    items = load_items(POPE, tmp_path)
    assert [item.id for item in items] == [
        "1", "2", "3", "4", "10000001", "10000002", "10000003", "20000001", "20000002", "20000003", "20000004",
    ]  # fmt: skip
    assert [item.groups["subset"] for item in items][::4] == ["adversarial", "random", "popular"]
    assert items[1].prompt == "Is there a fork in the image?" + SHORT
    assert items[1].images == (str(tmp_path / "val2014/1.jpg"),)
    assert (items[1].gold, items[1].cluster) == ("no", "1.jpg")


@pytest.mark.parametrize("answer, parsed", VECTORS.items())
def test_the_official_parser(answer, parsed):
    assert yes_or_no(answer) == parsed


def test_a_guess_of_the_parser_is_marked_and_the_lenient_score_reads_one_word():
    item = Item(id="1", prompt="?", gold="yes")
    assert [POPE.verdict(item, answer).fallback for answer in ("Yes.", "yes, it is", "", "Maybe", "no")] == [
        False, False, True, True, False,
    ]  # fmt: skip
    assert [POPE.verdict(item, answer).lenient for answer in ("Yes.", "YES", "", "Maybe", "no")] == [
        1,
        1,
        0,
        0,
        0,
    ]
    verdict = POPE.verdict(Item(id="1", prompt="?", gold="no"), "No!")
    assert (verdict.score, verdict.lenient) == (0.0, 1.0)


def plain_figures(golds: list[str], answers: list[str]) -> dict[str, float]:
    """Counts by the official loop, with 0 where it would divide by 0."""
    tp = tn = fp = fn = 0
    for gold, answer in zip(golds, answers, strict=True):
        if answer.find(".") != -1:
            answer = answer.split(".")[0]
        words = answer.replace(",", "").split(" ")
        is_no = "No" in words or "not" in words or "no" in words
        if not is_no and gold == "yes":
            tp += 1
        elif not is_no:
            fp += 1
        elif gold == "no":
            tn += 1
        else:
            fn += 1
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    n = len(golds)
    return {
        "f1": f1,
        "accuracy": (tp + tn) / n,
        "precision": precision,
        "recall": recall,
        "yes": (tp + fp) / n,
    }


def test_random_answers_are_counted_as_the_official_loop_does():
    draw = random.Random(0)
    items = [
        Item(
            id=f"{i}",
            prompt=f"{i}",
            gold=draw.choice(["yes", "no"]),
            cluster=f"{i % 99}",
            groups={"subset": subset},
        )
        for i, subset in enumerate(draw.choices([*FIRST_IDS], k=10_000))
    ]
    answers = draw.choices([*VECTORS], k=len(items))
    found = scored(POPE, items, answers)
    means = []
    for subset in FIRST_IDS:
        mine = [i for i, item in enumerate(items) if item.groups["subset"] == subset]
        expected = plain_figures([items[i].gold for i in mine], [answers[i] for i in mine])
        for name, value in expected.items():
            assert found[f"{name}/{subset}"].value == pytest.approx(value, abs=1e-12)
            assert found[f"{name}/{subset}"].n == len(mine)
        means.append(expected["f1"])
    assert found["f1"].value == pytest.approx(sum(means) / 3)
    assert next(iter(found)) == POPE.headline
    everything = plain_figures([item.gold for item in items], answers)
    for name in ("accuracy", "precision", "recall", "yes"):
        assert found[name].value == pytest.approx(everything[name], abs=1e-12) and found[name].n == 10_000
    assert all(
        figure.low < figure.value < figure.high for name, figure in found.items() if name != "unstable"
    )


def test_a_model_that_always_gives_one_answer(tmp_path):
    write(tmp_path, files())
    items = load_items(POPE, tmp_path)
    no = scored(POPE, items, ["No"] * len(items))
    assert (no["f1"].value, no["precision"].value, no["recall"].value, no["yes"].value) == (
        0.0,
        0.0,
        0.0,
        0.0,
    )
    yes = scored(POPE, items, ["Yes"] * len(items))
    for name in ("f1/random", "f1/popular", "f1", "accuracy/random", "accuracy/popular"):
        assert yes[name].value == pytest.approx(yes[name].chance), name
    assert yes["f1/popular"].value == pytest.approx(2 / 3) and yes["f1/random"].value == pytest.approx(0.8)
    assert yes["accuracy/random"].chance == pytest.approx(2 / 3)


def test_present_objects_are_answered_alike_in_all_subsets(tmp_path):
    write(tmp_path, files())
    items = load_items(POPE, tmp_path)
    stable = scored(POPE, items, ["Yes" if item.cluster == "1.jpg" else "No" for item in items])
    assert (stable["unstable"].value, stable["unstable"].n) == (0.0, 2)
    assert {stable[f"recall/{subset}"].value for subset in FIRST_IDS} == {0.5}, "TP and FN are equal"
    changed = scored(POPE, items, ["No"] + ["Yes"] * (len(items) - 1))
    assert (changed["unstable"].value, changed["unstable"].n) == (0.5, 2)
    assert "unstable" not in scored(POPE, items[:4], ["Yes"] * 4), "one subset alone"


def test_files_of_two_versions_are_refused(tmp_path):
    lines = files()
    lines["popular"][0]["text"] = "Is there a dog in the imange?"
    write(tmp_path, lines)
    (problem,) = refused(lambda: load_items(POPE, tmp_path))
    assert codes([problem]) == ["other-version"]
    assert "popular" in problem.where and "1.jpg: Is there a dog in the image?" in problem.got


def test_lines_out_of_order_twice_or_of_other_kinds_are_refused(tmp_path):
    lines = files()
    lines["random"] = lines["random"][::-1]
    lines["popular"][3] |= {"question_id": 3}
    lines["adversarial"][1] |= {"label": "maybe"}
    write(tmp_path, lines)
    problems = refused(lambda: load_items(POPE, tmp_path))
    found = dict(zip([p.where.rpartition("_")[2] for p in problems], codes(problems), strict=True))
    assert found == {
        "adversarial.json: line 2": "record",
        "random.json: line 2": "other-version",
        "popular.json": "duplicate-id",
    }


def test_missing_and_bad_files_are_reported_together(tmp_path):
    write(tmp_path, files())
    (tmp_path / "coco/coco_pope_random.json").write_text(LFS_TEXT)
    (tmp_path / "coco/coco_pope_popular.json").unlink()
    (tmp_path / "val2014/2.jpg").unlink()
    (tmp_path / "coco/coco_pope_adversarial.json").open("a").write("{broken\n")
    found = codes(refused(lambda: load_items(POPE, tmp_path)))
    assert sorted(found) == ["lfs-pointer", "no-file", "no-images", "not-json"]
