"""Kept answers beside those to the questions alone: how many, where they part, and by how much."""

from __future__ import annotations

import pytest

from lmmkit.evaluate.questions import alone as module
from lmmkit.evaluate.questions.alone import Alone, ask_alone
from lmmkit.evaluate.questions.asking import AskedQuestion, Reply, ReplyDifference, ask, replies
from tests.conftest import PLAIN
from tests.support.random_chat_model import random_chat_model, scene_samples

NEW = 6


@pytest.fixture
def model(tiny):
    return random_chat_model(tiny(text=PLAIN))


@pytest.fixture
def questions(scenes):
    return [AskedQuestion(("own", sample.key), sample) for sample in scene_samples(scenes, 3, 4)]


def kept_answers(model, questions) -> dict:
    found = {}
    ask(
        model, questions, max_new_tokens=NEW,
        on_replies=lambda pairs: found.update((q.key, reply.text) for q, reply in pairs),
    )  # fmt: skip
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_equal_answers_are_counted(model, questions, world):
    kept = kept_answers(model, questions)
    assert ask_alone(model, questions, kept, 5, max_new_tokens=NEW, world=world) == Alone(5, ())
    assert ask_alone(model, questions, kept, 500, max_new_tokens=NEW) == Alone(12, ())


def test_nothing_is_asked_without_answers(model, questions):
    assert ask_alone(model, questions, {}, 5, max_new_tokens=NEW) == Alone(0, ())


@pytest.mark.parametrize("world", [1, 2])
def test_a_parting_has_the_token_and_the_gap_of_the_question_alone(model, questions, monkeypatch, world):
    """Lets batches, not single questions, give another third token, as a near tie would."""
    victim = questions[6]
    gaps, real = [], module.replies

    def choose(logits_QV):
        gaps.append(float(logits_QV[0].sort(descending=True).values[:2].diff().abs()))
        return logits_QV.argmax(-1)

    (own,) = replies(model, [victim], max_new_tokens=NEW, choose=choose)
    ids = (*own.ids[:2], own.ids[2] + 1, *own.ids[3:])
    text = model.views.tokenizer.decode(list(ids)).strip()
    assert text != own.text

    def other(chat_model, batch, **more):
        found = real(chat_model, batch, **more)
        if len(batch) == 1:
            return found
        return [
            Reply(text, ids, False) if q.key == victim.key else r for q, r in zip(batch, found, strict=True)
        ]

    monkeypatch.setattr(module, "replies", other)
    kept = {**kept_answers(model, questions), victim.key: text}
    found = ask_alone(model, questions, kept, len(questions), max_new_tokens=NEW, world=world)
    assert found.differences == (ReplyDifference(victim.key, 2, pytest.approx(gaps[2])),)
    assert found.as_json() == {
        "asked": 12, "differ": [{"condition": "own", "id": victim.key[1], "token": 2, "gap": pytest.approx(gaps[2])}],
    }  # fmt: skip


def test_a_kept_answer_that_its_batch_does_not_repeat_has_no_place(model, questions):
    kept = kept_answers(model, questions) | {questions[3].key: "of another machine"}
    found = ask_alone(model, questions, kept, 12, max_new_tokens=NEW)
    assert found.differences == (ReplyDifference(questions[3].key, None, None),)
