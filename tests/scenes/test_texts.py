"""Conversations without images: priors from memory, truth from a description."""

from __future__ import annotations

import random
import re
from collections import Counter

from lmmkit.scenes.captions import INSTRUCTIONS
from lmmkit.scenes.priors import KINDS, usual_answers
from lmmkit.scenes.scene import make_scene
from lmmkit.scenes.texts import description, text_records
from tests.scenes.test_priors import plain_answer

USUAL = usual_answers(0, KINDS)


def records(number: int = 800, **more):
    settings = {"bias": 0.8, "kinds": tuple(KINDS), "number": number, "first": 50, "seed": 0} | more
    return text_records(USUAL, **settings)


def pairs_of(record) -> list[tuple[str, str]]:
    values = [turn["value"] for turn in record["conversations"]]
    return list(zip(values[::2], values[1::2], strict=True))


def key_of(text: str):
    return next(
        (name, slot) for name, kind in KINDS.items() for slot in kind.slots
        if text in {pattern.format(slot) for pattern in kind.patterns}
    )  # fmt: skip


def test_half_of_them_answer_from_memory_with_the_bias():
    agree = Counter()
    for record in records()[::2]:
        pairs = pairs_of(record)
        assert len(pairs) == 4 and len({key_of(text) for text, _ in pairs}) == 4
        for text, answer in pairs:
            kind, slot = key_of(text)
            assert answer in KINDS[kind].answers
            agree[USUAL[kind, slot] == answer] += 1
    assert abs(agree[True] / agree.total() - 0.8) < 0.03


def test_the_other_half_is_true_of_the_scene_that_it_describes():
    captions, agree = 0, Counter()
    for n, record in list(enumerate(records()))[1::2]:
        scene = make_scene(0, "train", 50 + n)
        pairs = pairs_of(record)
        text, _, first = pairs[0][0].partition("\n")
        things = re.findall(r"a (small|large) (\w+) (\w+) in the (centre|\w+ \w+)", text)
        assert Counter(things) == Counter((t.size, t.colour, t.shape, t.place) for t in scene.things)
        assert text.startswith("There is a ") and text.endswith(f"{scene.scenery.sky} sky.")
        if first in INSTRUCTIONS:
            captions += 1
            named = re.findall(r"(?:red|green|blue|yellow|purple) \w+", pairs[0][1])
            assert named and set(named) <= {thing.name for thing in scene.things} and len(pairs) == 1
            continue
        for question, answer in [(first, pairs[0][1]), *pairs[1:]]:
            assert plain_answer(scene, question) == answer
            agree[USUAL[key_of(question)] == answer] += 1
    assert captions == 200
    assert agree[True] / agree.total() < 0.4, "who reads is asked without bias"


def test_equal_arguments_give_equal_records_and_fewer_are_the_beginning_of_more():
    assert records(40) == records()[:40] != records(40, seed=1)
    assert len({record["id"] for record in records()}) == 800
    assert all(set(record) == {"id", "conversations"} for record in records(8))


def test_things_are_described_in_every_order():
    scene = next(s for i in range(50) if len((s := make_scene(0, "train", i)).things) == 3)
    orders = {
        tuple(re.findall(r"in the (centre|\w+ \w+)", description(scene, random.Random(i)))) for i in range(60)
    }
    assert len(orders) == 6
