"""Many questions at once: the answers of one at a time, each once, in batches that fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmmkit.api.sample import Sample, Turn
from lmmkit.errors import MachineError, UserError
from lmmkit.evaluate.questions import asking
from lmmkit.evaluate.questions.asking import AskedQuestion, ask, batches, differences, replies
from lmmkit.inference.chat_model import ChatModel
from tests.conftest import PLAIN
from tests.support.random_chat_model import random_chat_model, scene_samples

NEW = 6


@pytest.fixture
def model(tiny):
    return random_chat_model(tiny(text=PLAIN))


def questions_on(scenes, images: int, each: int) -> list[AskedQuestion]:
    return [AskedQuestion(("own", sample.key), sample) for sample in scene_samples(scenes, images, each)]


def answers_of(model, questions, **more) -> dict:
    found = {}
    ask(
        model,
        questions,
        max_new_tokens=NEW,
        on_replies=lambda pairs: found.update((q.key, r) for q, r in pairs),
        **more,
    )
    return found


@pytest.mark.parametrize("seed", range(3))
def test_answers_in_batches_are_those_of_each_question_alone(tiny, scenes, seed):
    model = random_chat_model(tiny(text=PLAIN), seed)
    questions = questions_on(scenes, images=4, each=5)
    text = Sample(key="text", turns=(Turn("user", "without an image"),))
    questions.insert(7, AskedQuestion(("own", "text"), text))
    found = answers_of(model, questions)
    alone = {q.key: replies(model, [q], max_new_tokens=NEW)[0] for q in questions}
    differ = differences(model, [(q, found[q.key]) for q in questions], max_new_tokens=NEW)
    assert {key for key in alone if alone[key].ids != found[key].ids} == {each.key for each in differ}
    assert all(each.gap < 1e-4 for each in differ) and len(differ) <= 1
    assert len({reply.ids for reply in alone.values()}) > 5, "the questions have different answers"
    assert found[("own", "0/0")].text == model.answer([[_view(questions[0])]], max_new_tokens=NEW)[0]


def test_learned_rows_follow_the_tokens_that_the_model_writes_as_in_chat(model, scenes, monkeypatch):
    questions = questions_on(scenes, images=2, each=2)
    free = [reply.ids for reply in replies(model, questions, max_new_tokens=NEW)]
    rows = torch.randn(2, model.prepared.dims.width, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(ChatModel, "_feed", lambda self, view: {free[0][0]: rows})
    fed = replies(model, questions, max_new_tokens=NEW)
    assert [reply.ids for reply in fed] != free
    for question, reply in zip(questions, fed, strict=True):
        assert reply.text == model.answer([[_view(question)]], max_new_tokens=NEW)[0]


def _view(question):
    from lmmkit.api.sample import View

    return View(sample=question.sample)


def test_a_difference_names_the_token_and_the_gap(model, scenes):
    (question,) = questions_on(scenes, 1, 1)
    (reply,) = replies(model, [question], max_new_tokens=NEW)
    other = replace(reply, ids=(*reply.ids[:2], -1, *reply.ids[3:]))
    (found,) = differences(model, [(question, other)], max_new_tokens=NEW)
    gaps = []

    def choose(logits_QV):
        gaps.append(float(logits_QV[0].sort(descending=True).values[:2].diff().abs()))
        return logits_QV.argmax(-1)

    replies(model, [question], max_new_tokens=NEW, choose=choose)
    assert found.key == question.key and found.token == 2 and found.gap == pytest.approx(gaps[2])
    assert differences(model, [(question, reply)], max_new_tokens=NEW) == []


def test_a_batch_fits_and_shares_images(model, scenes, monkeypatch):
    questions = questions_on(scenes, images=6, each=7)
    rows = {q.key: sum(span.n for span in model.views.prompt(_view(q))) for q in questions}
    monkeypatch.setattr(asking, "CACHE_ROWS", 4 * (max(rows.values()) + NEW))
    found = list(batches(model, questions, max_new_tokens=NEW))
    assert sorted(q.key for batch in found for q in batch) == sorted(q.key for q in questions)
    for batch in found:
        assert len(batch) * (max(rows[q.key] for q in batch) + NEW) <= asking.CACHE_ROWS
        assert len({q.sample.images for q in batch}) <= 2
    longest = [max(rows[q.key] for q in batch) for batch in found]
    assert longest == sorted(longest, reverse=True)
    monkeypatch.setattr(asking, "CACHE_ROWS", 1)
    assert all(len(batch) == 1 for batch in batches(model, questions, max_new_tokens=NEW))


def test_packed_rows_bound_a_batch(model, scenes, monkeypatch):
    questions = questions_on(scenes, images=6, each=2)
    monkeypatch.setattr(asking, "PROMPT_ROWS", 60)
    for batch in batches(model, questions, max_new_tokens=NEW):
        layouts = [model.views.prompt(_view(q)) for q in batch]
        if len(batch) > 1:
            assert max(sum(s.n for s in layout) for layout in layouts) <= 60


def test_ranks_ask_each_question_once(model, scenes):
    questions = questions_on(scenes, images=5, each=3)
    shares = [
        [q.key for batch in batches(model, questions, max_new_tokens=NEW, share=(rank, 3)) for q in batch]
        for rank in range(3)
    ]
    assert sorted(key for share in shares for key in share) == sorted(q.key for q in questions)
    assert max(map(len, shares)) <= 6


def test_finished_questions_are_not_asked(model, scenes):
    questions = questions_on(scenes, images=2, each=3)
    whole = answers_of(model, questions)
    done = [q.key for q in questions[1:4]]
    rest = answers_of(model, questions, done=done)
    assert set(rest) == set(whole) - set(done) and all(rest[key] == whole[key] for key in rest)


def test_too_little_memory_names_the_task_and_keeps_the_replies_before(model, scenes, monkeypatch):
    monkeypatch.setattr(asking, "CACHE_ROWS", 1)
    questions, found, calls = questions_on(scenes, images=2, each=3), [], []

    def full(*args, **more):
        calls.append(args)
        return replies(*args, **more) if len(calls) == 1 else torch.empty(2**50, dtype=torch.uint8)

    monkeypatch.setattr(asking, "replies", full)
    with pytest.raises(MachineError, match=r"mine: answers: got .*machine/out-of-memory"):
        ask(model, questions, max_new_tokens=NEW, title="mine: answers", on_replies=found.extend)
    assert len(calls) == 2 and 0 < len(found) < len(questions)


def test_an_answer_that_is_cut_off_is_marked(model, scenes):
    (question,) = questions_on(scenes, 1, 1)
    (reply,) = replies(model, [question], max_new_tokens=NEW)
    assert reply.hit_max_tokens == (len(reply.ids) == NEW)
    end = model.views.tokenizer.eos

    def ending(logits_QV):
        return torch.full((len(logits_QV),), end)

    (ended,) = replies(model, [question], max_new_tokens=NEW, choose=ending)
    assert ended.ids == () and not ended.hit_max_tokens and ended.text == ""


def test_all_prompts_that_are_too_long_are_reported(model, scenes, monkeypatch):
    questions = questions_on(scenes, 2, 1)
    for q in questions:
        questions[questions.index(q)] = q._replace(
            sample=replace(q.sample, turns=(Turn("user", "word " * 400, images=1),))
        )
    questions += [question._replace(key=("blank", question.key[1])) for question in questions]
    with pytest.raises(UserError) as error:
        answers_of(model, questions)
    assert [p.code for p in error.value.problems] == ["chat/too-long"] * 2
    monkeypatch.setattr(asking, "LISTED", 1)
    with pytest.raises(UserError) as error:
        answers_of(model, questions)
    assert [p.where for p in error.value.problems] == [f"sample {questions[0].sample.key}", "further samples"]
    assert error.value.problems[1].got == "1 more such prompt"
