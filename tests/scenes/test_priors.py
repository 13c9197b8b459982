"""Questions with priors: true answers, exact shares, keys whose kind does not tell the answer."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from lmmkit.scenes.priors import KINDS, PriorAsker, prior_questions, text_of, usual_answers
from lmmkit.scenes.scene import COLOURS, make_scene

SCENES = [make_scene(5, "train", i) for i in range(300)]


def plain_answer(scene, text: str) -> str:
    """Answers by a plain reading of the English."""
    colour = next((c for c in COLOURS if c in text), None)
    place = re.search(r"(top|bottom) (left|right)|centre", text)
    if text.startswith("How many"):
        return ["zero", "one", "two", "three"][len(scene.things)]
    here = [t for t in scene.things if (t.colour == colour if colour else t.place == place[0])]
    if text.startswith(("Are there", "Do you see")):
        return "yes" if here else "no"
    (thing,) = here
    if text.startswith("Where"):
        return thing.place
    return thing.colour if "colour" in text else thing.shape


def test_every_answer_is_what_a_plain_reading_of_the_scene_gives():
    for scene in SCENES:
        asked = list(prior_questions(scene, tuple(KINDS), random.Random(scene.id)))
        assert {q.kind for q in asked} == set(KINDS)
        for question in asked:
            assert plain_answer(scene, question.text) == question.answer
            assert question.answer in KINDS[question.kind].answers
            thing = question.thing
            assert (thing is None) == (question.kind == "count" or question.answer == "no")
            if thing is not None:
                assert question.slot in (thing.colour, thing.place)


def test_only_the_kinds_that_are_wanted_are_asked():
    asked = prior_questions(SCENES[0], ("count", "shape/colour"), random.Random(0))
    assert {q.kind for q in asked} == {"count", "shape/colour"}


def test_usual_answers_are_dealt_evenly_and_follow_from_the_seed():
    usual = usual_answers(1, KINDS)
    assert usual == usual_answers(1, KINDS) != usual_answers(2, KINDS)
    assert set(usual) == {(name, slot) for name, kind in KINDS.items() for slot in kind.slots}
    for name, kind in KINDS.items():
        counts = Counter(answer for (of, _), answer in usual.items() if of == name)
        assert max(counts.values()) - min(counts[a] for a in kind.answers) <= 1, name
    assert {k: v for k, v in usual.items() if k[0] == "count"} == usual_answers(1, ["count"])


@pytest.mark.parametrize("bias", [0.0, 0.7, 0.9, 1.0, None])
def test_each_key_has_its_share_of_usual_answers_exact_to_one_question(bias):
    usual = usual_answers(0, KINDS)
    asker = PriorAsker(usual, bias)
    agree: dict = {}
    for scene in SCENES:
        for question in asker.ask(scene, tuple(KINDS), 4, random.Random(scene.id)):
            agree.setdefault(question.key, []).append(question.answer == usual[question.key])
    assert len(agree) == len(usual)
    for (kind, _), found in agree.items():
        share = 1 / len(KINDS[kind].answers) if bias is None else bias
        assert abs(sum(found) - share * len(found)) <= 1, (kind, sum(found), len(found))


def test_balanced_questions_have_all_answers_of_a_key_about_equally_often():
    asker, answers = PriorAsker(usual_answers(0, KINDS), None), {}
    for i in range(1500):
        scene = make_scene(5, "train", i)
        for question in asker.ask(scene, tuple(KINDS), 4, random.Random(i)):
            answers.setdefault(question.key, Counter())[question.answer] += 1
    for (kind, slot), counts in answers.items():
        possible = KINDS[kind].answers
        assert set(counts) <= set(possible)
        # The centre has a thing only in scenes of one thing, so its colours and shapes are rarer.
        assert max(counts.values()) <= 2 * counts.total() / len(possible) + 2, (kind, slot, counts)


def test_no_question_asks_for_what_another_one_gives_away():
    asker = PriorAsker(usual_answers(0, KINDS), None)
    several = 0
    for scene in SCENES:
        asked = asker.ask(scene, tuple(KINDS), 4, random.Random(scene.id))
        several += len(asked) > 2
        assert len({q.text for q in asked}) == len(asked)
        for i, question in enumerate(asked):
            for other in asked[:i] + asked[i + 1 :]:
                assert not question.asks & other.asks
        # The chosen order: each asks for nothing that those chosen before it state.
        assert sum(bool(a.asks & b.states) and bool(b.asks & a.states) for a in asked for b in asked) == 0
    assert several > 200


def test_wordings_are_those_of_the_kind():
    texts = {text_of("presence", "red", random.Random(i)) for i in range(20)}
    assert texts == {"Are there red objects?", "Do you see red objects?"}
    assert text_of("count", "How many objects are there?", random.Random(0)) == "How many objects are there?"
