"""GQA: equal texts, binary and open questions, types, steps and the distribution of answers."""

from __future__ import annotations

import random

import pytest

from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.benchmarks.gqa import Gqa
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

GQA = Gqa()
NAME = "testdev_balanced_questions.json"


def step(operation, argument="car (1)"):
    return {"operation": operation, "argument": argument, "dependencies": []}


def question(**changes):
    return {
        "question": "Is it red?", "imageId": "n1", "answer": "no", "fullAnswer": "No.", "isBalanced": True,
        "types": {"structural": "verify", "semantic": "attr", "detailed": "verifyColor"},
        "groups": {"global": None, "local": "x"}, "semantic": [step("select"), step("verify color", "red")],
        "entailed": [], "equivalent": ["201"], "semanticStr": "", "annotations": {},
    } | changes  # fmt: skip


QUESTIONS = {
    "201": question(),
    "7": question(
        question="Who is wearing the dress?", answer="woman", imageId="n2",
        types={"structural": "query", "semantic": "rel", "detailed": "relS"}, groups={"global": "person", "local": "y"},
        semantic=[step("select"), step("relate"), step("query", "name")],
    ),
    "30": question(isBalanced=False),
    "31": question(answer="yes", semantic=[step("select"), step("exist", "?")]),
}  # fmt: skip


def write(folder, questions=QUESTIONS, under=""):
    save(folder / under / NAME, questions)
    touch_images(folder / "images", ["n1.jpg", "n2.jpg"])


@pytest.mark.parametrize("under", ["", "questions1.2", "data"])
def test_items_have_llava_s_prompt_and_only_balanced_questions(tmp_path, under):
    write(tmp_path, under=under)
    items = load_items(GQA, tmp_path)
    assert [item.id for item in items] == ["201", "7", "31"]
    assert items[1].prompt == "Who is wearing the dress?" + SHORT
    assert items[1].images == (str(tmp_path / "images/n2.jpg"),) and items[1].cluster == "n2"
    assert items[1].groups == {
        "answer": "open", "structural": "structural query", "semantic": "semantic rel", "steps": "2 steps",
        "length": "5 words", "global": "person",
    }  # fmt: skip
    assert (items[0].groups["answer"], items[0].groups["steps"]) == ("binary", "2 steps")
    assert items[2].groups["steps"] == "1 step", "`exist` is no step"


@pytest.mark.parametrize(
    "answer, score, lenient",
    [("woman", 1, 1), ("Woman.", 1, 1), ("WOMAN...", 1, 1), ("woman. ", 0, 1), ("the woman", 0, 0), ("woman!", 0, 1),
     ("", 0, 0), ("wo man", 0, 0)],
)  # fmt: skip
def test_answers_are_compared_without_periods_at_the_end(answer, score, lenient):
    verdict = GQA.verdict(Item(id="7", prompt="?", gold="woman"), answer)
    assert (verdict.score, verdict.lenient) == (score, lenient)


def plain_scores(items, answers):
    """Follows the official script: scores in lists, and the chi-square of each group."""
    scores, gold, predicted = {"accuracy": [], "binary": [], "open": []}, {}, {}
    for item, answer in zip(items, answers, strict=True):
        while answer.endswith("."):
            answer = answer[:-1]
        answer = answer.lower()
        score = float(answer == item.gold)
        scores["accuracy"].append(score)
        scores["open" if item.groups["structural"] == "structural query" else "binary"].append(score)
        for kind in ("structural", "semantic", "steps", "length"):
            scores.setdefault(item.groups[kind], []).append(score)
        if (group := item.groups.get("global")) is not None:
            gold.setdefault(group, {}).setdefault(item.gold, 0)
            gold[group][item.gold] += 1
            predicted.setdefault(group, {}).setdefault(answer, 0)
            predicted[group][answer] += 1
    total = overall = 0.0
    for group in gold:
        score = members = 0.0
        for answer, e in gold[group].items():
            score += (predicted[group].get(answer, 0) - e) ** 2 / e
            members += e
        total += score * members
        overall += members
    return {name: sum(values) / len(values) for name, values in scores.items()}, total / overall / 100


def test_random_answers_are_scored_as_the_official_loop_does():
    draw = random.Random(0)
    pool = ["yes", "no", "red", "car"]
    items = []
    for i in range(10_000):
        structural = draw.choice(["query", "verify", "choose"])
        groups = {
            "answer": "open" if structural == "query" else "binary", "structural": f"structural {structural}",
            "semantic": f"semantic {draw.choice(['rel', 'attr'])}", "steps": f"{draw.randint(1, 12)} steps",
            "length": f"{draw.randint(3, 20)} words",
        }  # fmt: skip
        if draw.random() < 0.7:
            groups["global"] = draw.choice(["person", "color"])
        items.append(Item(id=str(i), prompt="?", gold=draw.choice(pool), cluster=str(i % 300), groups=groups))
    answers = draw.choices([*pool, "Yes.", "NO", "", "car.."], k=len(items))
    found = scored(GQA, items, answers)
    accuracies, distribution = plain_scores(items, answers)
    assert next(iter(found)) == GQA.headline
    assert found["accuracy"].value == pytest.approx(accuracies.pop("accuracy"), abs=1e-12)
    for name, value in accuracies.items():
        assert found[f"accuracy/{name}"].value == pytest.approx(value, abs=1e-12)
    assert found["distribution"].value == pytest.approx(distribution, abs=1e-12)
    golds = [item.gold for item in items]
    assert found["accuracy"].chance == max(map(golds.count, pool)) / len(items)


def test_right_answers_have_no_distance():
    items = [Item(id=str(i), prompt="?", gold=g, groups={"global": "x"}) for i, g in enumerate("aab")]
    assert scored(GQA, items, ["a", "b", "a"])["distribution"].value == 0.0, "in another order"
    assert scored(GQA, items, ["a", "a", "a"])["distribution"].value == pytest.approx((1 / 2 + 1) / 100)
    assert "distribution" not in scored(GQA, [Item(id="1", prompt="?", gold="a")], ["a"])


@pytest.mark.parametrize(
    "changes, place",
    [({"answer": 3}, "`201`"), ({"types": {"structural": "verify"}}, "`201`.types"),
     ({"semantic": [{"operation": "select"}]}, "`201`.semantic[0]"), ({"groups": {"global": 3}}, "`201`.groups"),
     ({"isBalanced": "yes"}, "`201`")],
)  # fmt: skip
def test_a_bad_question_is_refused(tmp_path, changes, place):
    write(tmp_path, QUESTIONS | {"201": question(**changes)})
    (problem,) = refused(lambda: load_items(GQA, tmp_path))
    assert problem.code == "benchmarks/record" and problem.where == f"{tmp_path / NAME}: {place}"


def test_missing_and_bad_files_are_reported_together(tmp_path):
    write(tmp_path)
    (tmp_path / "images/n2.jpg").unlink()
    (problem,) = refused(lambda: load_items(GQA, tmp_path))
    assert problem.code == "benchmarks/no-images" and problem.got == "no n2.jpg"
    (tmp_path / NAME).write_text('{"1": {}, "1": {}}')
    assert codes(refused(lambda: load_items(GQA, tmp_path))) == ["duplicate-id", "record"]
    (tmp_path / NAME).write_text(LFS_TEXT)
    (tmp_path / "images").rename(tmp_path / "photos")
    assert sorted(codes(refused(lambda: load_items(GQA, tmp_path)))) == ["lfs-pointer", "no-file"]
