"""Foreign answers and the items of a benchmark: what fits, what does not, and the score with its coverage."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lmmkit.errors import UserError
from lmmkit.evaluate.answers.foreign import ForeignAnswer
from lmmkit.evaluate.answers.score import matched, score_answers
from lmmkit.evaluate.benchmarks.benchmark import Item
from tests.support.toy_benchmark import Toy

ITEMS: Sequence[Item] = [
    Item(id=f"random/{i}", prompt=f"Is there a {name}?\nAnswer shortly.", images=(f"/x/{i // 2}.jpg",), gold="a", cluster=str(i))
    for i, name in enumerate(("dog", "cat", "cow", "pig"))
]  # fmt: skip


def foreign(*rows) -> list[ForeignAnswer]:
    return [ForeignAnswer(*row, place=i) for i, row in enumerate(rows, 1)]


@pytest.mark.parametrize(("rows", "by"), [
    ([("a", f"random/{i}") for i in range(4)], "id"),
    ([("a", str(i)) for i in range(4)], "last part of the id"),
    ([("a", "", f"<image>\nIs there a {n}?\nAnswer shortly.", f"d/{i // 2}.jpg") for i, n in enumerate(("dog", "cat", "cow", "pig"))], "image and prompt"),
    ([("a", f"{i // 2}.jpg", f"is there a {n}?") for i, n in enumerate(("dog", "cat", "cow", "pig"))], "image"),
    ([("a", "", f"Is there a {n}?") for n in ("dog", "cat", "cow", "pig")], "first line of the prompt"),
])  # fmt: skip
def test_answers_are_matched_by_what_they_have(rows, by):
    found = matched(ITEMS, foreign(*rows), "x.json")
    assert found.by == by and list(found.texts) == [item.id for item in ITEMS]
    assert (found.missing, found.extra, found.repeated, found.notes()) == ((), (), (), [])


def test_what_does_not_fit_is_counted_and_named():
    rows = [("a", "random/0"), ("a", "random/0"), ("b", "random/2"), ("a", "popular/9")]
    found = matched(ITEMS, foreign(*rows), "x.json")
    assert found.missing == ("random/1", "random/3")
    assert found.extra == ("popular/9",) and found.repeated == ("random/0",)
    assert [note.split(":")[1].strip() for note in found.notes()] == [
        "random/1, random/3",
        "popular/9",
        "random/0",
    ]
    scored = score_answers(Toy(), ITEMS, found, task="toy", split="test")
    assert scored.figures["accuracy"].value == 0.25 and scored.figures["accuracy"].n == 4
    expected = {"expected": 4, "answered": 2, "missing": 2, "extra": 1, "repeated": 1, "unparsed": 2}
    assert expected.items() <= scored.coverage.items()


def test_two_different_answers_to_one_item_are_refused():
    with pytest.raises(UserError, match="answers/duplicate") as error:
        matched(ITEMS, foreign(("a", "random/0"), ("b", "random/0")), "x.json")
    assert "`random/0`" in error.value.problems[0].got


def test_answers_to_other_questions_are_refused():
    with pytest.raises(UserError, match="answers/other-questions"):
        matched(ITEMS, foreign(("a", "17"), ("b", "18")), "x.json")


def test_one_id_of_several_items_is_distinguished_by_the_prompt():
    twice = [
        Item(id=f"{i}#{j}", prompt=p, images=(f"/{i}.jpg",), gold="a")
        for i in "xy"
        for j, p in enumerate(("Red?", "Blue?"))
    ]
    rows = [("a", "x.jpg", "Red?"), ("b", "x.jpg", "Blue?"), ("a", "y.jpg", "Blue?")]
    found = matched(twice, foreign(*rows), "x.json")
    assert found.texts == {"x#0": "a", "x#1": "b", "y#1": "a"} and found.missing == ("y#0",)


def test_items_of_one_id_are_matched_by_prompt_or_order():
    """MME asks two questions about an image, SEED-Bench has one id twice."""
    ask = "Answer the question using a single word or phrase."
    pair = [
        Item(id=f"count/1.png{end}", prompt=f"Is it {n}?\n{ask}", images=("/1.png",), gold="a")
        for end, n in (("", "two"), ("#2", "three"))
    ]
    rows = [
        ("b", "count/1.png", "Is it three? Please answer yes or no."),
        ("a", "count/1.png", "Is it two? Please answer yes or no."),
    ]
    found = matched(pair, foreign(*rows), "x")
    assert found.texts == {"count/1.png": "a", "count/1.png#2": "b"} and found.by == "id"
    assert matched(pair, foreign(("a", "count/1.png"), ("b", "count/1.png")), "x").texts == found.texts
    half = matched(pair, foreign(("a", "count/1.png", "Is it two?")), "x")
    assert half.missing == ("count/1.png#2",)
    half = matched(pair, foreign(("b", "count/1.png", "Is it three?")), "x")
    assert half.texts == {"count/1.png#2": "b"}
    own = matched(pair, foreign(("b", "count/1.png#2"), ("a", "count/1.png")), "x")
    assert own.texts == {"count/1.png": "a", "count/1.png#2": "b"} and own.by == "id in lmmkit"


def test_answers_without_ids_are_matched_by_order():
    """Matches the answers of POPE, which have only their question, asked about many images."""
    same = [Item(id=str(i), prompt="Is there a dog?", images=(f"/{i}.jpg",), gold="a") for i in range(3)]
    rows = [(text, "", "Is there a dog?") for text in "aba"]
    found = matched(same, foreign(*rows), "x")
    assert found.by == "order" and found.texts == {"0": "a", "1": "b", "2": "a"}
    with pytest.raises(UserError, match="answers/other-questions"):
        matched(same, foreign(*rows[:2]), "x")
