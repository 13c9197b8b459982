"""Foreign answers and the items of a benchmark: what fits, what does not, and the score with its coverage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from lmmkit.errors import UserError
from lmmkit.evaluate.answers.foreign import ForeignAnswer
from lmmkit.evaluate.answers.score import (
    groups_without_answers,
    matched,
    questions_of_figures,
    score_answers,
)
from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.benchmarks.gqa import Gqa
from lmmkit.evaluate.benchmarks.mmbench import ROTATION, MMBench
from lmmkit.evaluate.benchmarks.mme import Mme
from lmmkit.evaluate.benchmarks.mmmu import Mmmu
from lmmkit.evaluate.benchmarks.pope import Pope
from lmmkit.evaluate.benchmarks.scienceqa import ScienceQa
from lmmkit.evaluate.benchmarks.seed import SeedBench
from lmmkit.evaluate.benchmarks.vqav2 import VqaV2
from lmmkit.evaluate.option_letters import ASK_LETTER
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
    assert scored.figures["accuracy"].value == 0.5 and scored.figures["accuracy"].n == 2, (
        "without those left out"
    )
    expected = {"expected": 4, "answered": 2, "missing": 2, "extra": 1, "repeated": 1, "unparsed": 0}
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
    assert found.texts == {"count/1.png": "a", "count/1.png#2": "b"} and found.by == "official id"
    ordered = matched(pair, foreign(("a", "count/1.png"), ("b", "count/1.png")), "x")
    assert ordered.texts == found.texts and ordered.ordered == ("count/1.png", "count/1.png#2")
    assert found.ordered == () and "2 distinguished by their order alone" in ordered.notes()[0]
    half = matched(pair, foreign(("a", "count/1.png", "Is it two?")), "x")
    assert half.missing == ("count/1.png#2",)
    half = matched(pair, foreign(("b", "count/1.png", "Is it three?")), "x")
    assert half.texts == {"count/1.png#2": "b"}
    own = matched(pair, foreign(("b", "count/1.png#2"), ("a", "count/1.png")), "x")
    assert own.texts == {"count/1.png": "a", "count/1.png#2": "b"} and own.by == "id"


def test_equal_questions_are_distinguished_by_their_order():
    """Matches the answers of POPE, which have only their question, asked about many images."""
    same = [Item(id=str(i), prompt="Is there a dog?", images=(f"/{i}.jpg",), gold="a") for i in range(3)]
    rows = [(text, "", "Is there a dog?") for text in "aba"]
    found = matched(same, foreign(*rows), "x")
    assert found.texts == {"0": "a", "1": "b", "2": "a"} and found.ordered == ("0", "1", "2")
    with pytest.raises(UserError, match="answers/other-questions"):
        matched(same, foreign(*rows[:2]), "x")


SUBSETS = {"random": "dog cat cow pig", "popular": "dog cat car man", "adversarial": "dog cat cup fork"}
POPE = [
    Item(
        id=str(number * 100 + i), prompt=f"Is there a {name}?\nShortly.", images=(f"/{i // 2}.jpg",), gold="a",
        cluster=str(i // 2), groups={"subset": subset},
    )
    for number, (subset, names) in enumerate(SUBSETS.items())
    for i, name in enumerate(names.split())
]  # fmt: skip


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_answers_of_one_subset_are_those_of_one_subset(subset):
    """Reads POPE's own files of answers, which have questions and no ids."""
    rows = [
        (text, "", f"Is there a {name}?") for text, name in zip("abba", SUBSETS[subset].split(), strict=True)
    ]
    found = matched(POPE, foreign(*rows), "x")
    assert found.by == f"order in {subset}"
    wanted = [item.id for item in POPE if item.groups["subset"] == subset]
    assert list(found.texts.items()) == list(zip(wanted, "abba", strict=True)) and len(found.missing) == 8
    assert groups_without_answers(POPE, found) == {"subset": [other for other in SUBSETS if other != subset]}


def test_numbers_of_another_subset_are_no_ids():
    """Refuses the numbers 0 to 3 as ids of the first subset where the questions are those of the last."""
    rows = [("a", str(i), f"Is there a {name}?") for i, name in enumerate(("cup", "fork", "car", "man"))]
    assert set(matched(POPE, foreign(*rows), "x").texts) == {"202", "203", "102", "103"}


def test_answers_that_fit_several_subsets_are_refused():
    with pytest.raises(UserError, match="answers/other-questions") as error:
        matched(POPE, foreign(*[(text,) for text in "abba"]), "x")
    assert "random, popular, adversarial" in error.value.problems[0].got


def test_one_answer_counts_for_equal_questions_of_its_subsets():
    """Reads the table of VLMEvalKit, which has a question of several subsets once."""
    rows = [
        ForeignAnswer("a", "7", "Is there a dog?", "0.jpg", 1, groups=frozenset({"random", "adversarial"})),
        ForeignAnswer("b", "8", "Is there a fork?", "1.jpg", 2, groups=frozenset({"adversarial"})),
    ]
    found = matched(POPE, rows, "x")
    assert found.texts == {"0": "a", "200": "a", "203": "b"} and found.extra == ()


def test_questions_are_distinguished_by_their_options():
    items = [
        Item(id=str(i), prompt=f"Context: x\nWhich?\nA. {a}\nB. {b}\n{ASK_LETTER}", gold="A")
        for i, (a, b) in enumerate((("red", "blue"), ("one", "two")))
    ]
    found = matched(
        items, foreign(("B", "77", "Which?\nA. one\nB. two"), ("A", "78", "Which?\nA. red\nB. blue")), "x"
    )
    assert found.texts == {"1": "B", "0": "A"} and found.by == "question and options"


def test_answers_that_a_program_did_not_get_are_left_out():
    rows = [
        ForeignAnswer("a", "random/0", place=1),
        ForeignAnswer("Failed to", "random/1", place=2, failed=True),
    ]
    found = matched(ITEMS, rows, "x")
    assert found.texts == {"random/0": "a"} and found.failed == ("random/1",) and len(found.missing) == 3
    assert any("gave no answer: random/1" in note for note in found.notes())


CASES = {
    "pope": (Pope(), [replace(item, gold="no" if i % 3 else "yes") for i, item in enumerate(POPE)], "f1"),
    "mme": (Mme(), [
        Item(id=f"{subtask}/{i}{end}", prompt="?", gold=gold, cluster=f"{subtask}/{i}", groups={"part": "perception", "subtask": subtask})
        for subtask in ("count", "color") for i in range(3) for end, gold in (("", "yes"), ("#2", "no"))
    ], "perception"),
    "mmbench": (MMBench(), [
        Item(id=str(i + turn * ROTATION), prompt="?", gold={"letter": "ABC"[turn], "rotations": 2}, cluster=str(i), groups={"category": "c"})
        for i in range(6) for turn in range(2)
    ], "circular"),
    "seed": (SeedBench(), [
        Item(id=str(i), prompt="?", gold="ABCD"[i % 4], cluster=str(i), groups={"questions": "set", "data": ("image", "video")[i > 7], "dimension": "d"})
        for i in range(12)
    ], "accuracy"),
    "mmmu": (Mmmu(), [
        Item(id=f"validation_Art_{i}", prompt="?", gold={"type": "multiple-choice", "answers": ["AB"[i % 2]], "options": ["x", "y"]}, cluster=str(i), groups={"domain": "Art", "type": "t", "subject": "Art"})
        for i in range(12)
    ], "accuracy"),
    "vqav2": (VqaV2(), [
        Item(id=str(i), prompt="?", gold=["", *["red"] * 9], cluster=str(i), groups={"answer_type": "other", "question_type": "what"})
        for i in range(12)
    ], "accuracy"),
    "gqa": (Gqa(), [Item(id=str(i), prompt="?", gold="red", cluster=str(i), groups={"global": "colour"}) for i in range(12)], "accuracy"),
    "scienceqa": (ScienceQa(), [Item(id=str(i), prompt="?", images=("/x.png",) if i > 3 else (), gold="A", cluster=str(i)) for i in range(12)], "image accuracy"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_missing_answer_changes_no_figure_of_the_others(name):
    """Scores 6 of 12 answers as the 6 questions alone: a missing one is neither yes, nor a guess, nor wrong."""
    benchmark, items, headline = CASES[name]
    assert len(items) == 12
    rows = [
        (
            "yes" if name in ("pope", "mme") else "red" if item.gold == "red" or name == "vqav2" else "A",
            item.id,
        )
        for item in items[6:]
    ]
    found = matched(items, foreign(*rows), "x")
    scored = score_answers(benchmark, items, found, task=name, split="test")
    alone = benchmark.figures(
        items[6:], [benchmark.verdict(i, row[0]) for i, row in zip(items[6:], rows, strict=True)]
    )
    assert scored.figures == alone and headline in alone
    assert (scored.coverage["answered"], scored.coverage["expected"]) == (6, 12)
    assert questions_of_figures(benchmark, items)[headline] > scored.figures[headline].n > 0


def test_without_all_rotations_a_question_has_no_circular_figure():
    benchmark, items, _ = CASES["mmbench"]
    found = matched(items, foreign(*[("A", item.id) for item in items if int(item.id) < ROTATION]), "x")
    figures = score_answers(benchmark, items, found, task="mmbench", split="dev").figures
    assert "circular" not in figures and figures["vanilla"].n == 6 and figures["vanilla"].value == 1.0
