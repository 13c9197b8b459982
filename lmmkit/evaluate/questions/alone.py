"""Asks some questions again, each alone, and finds where their kept answers differ: `lmmkit eval --alone N`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmmkit.evaluate.answers.schema import AnswerKey
from lmmkit.evaluate.questions.asking import AskedQuestion, ReplyDifference, batches, differences, replies
from lmmkit.inference.chat_model import ChatModel
from lmmkit.progress import working


@dataclass(frozen=True)
class Alone:
    """Holds how many questions were asked alone, and the answers that differ."""

    asked: int
    differences: tuple[ReplyDifference, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns the entry for `results.json`."""
        found = [
            {"condition": each.key[0], "id": each.key[1], "token": each.token, "gap": each.gap}
            for each in self.differences
        ]
        return {"asked": self.asked, "differ": found}


def ask_alone(
    chat_model: ChatModel, questions: Sequence[AskedQuestion], kept: Mapping[AnswerKey, str], n: int, *,
    max_new_tokens: int, world: int = 1, title: str = "alone",
) -> Alone:  # fmt: skip
    """Asks `n` questions alone, spread evenly, and compares the texts with the kept ones.

    Where two differ, its batch is asked again, because the tokens of kept answers are not known.

    Args:
        chat_model: the model.
        questions: all questions of the task, from which its batches are formed.
        kept: the text of each answer.
        n: how many to ask; all if there are fewer.
        max_new_tokens: as in the task.
        world: the number of processes that shared the questions.
        title: of the progress that is shown.
    """
    answered = [question for question in questions if question.key in kept]
    n = min(n, len(answered))
    picked = [answered[i * len(answered) // n] for i in range(n)]
    other: set[AnswerKey] = set()
    with working(title, n) as move:
        for done, question in enumerate(picked, 1):
            (alone,) = replies(chat_model, [question], max_new_tokens=max_new_tokens)
            if alone.text != kept[question.key]:
                other.add(question.key)
            move(done)
    return Alone(n, tuple(_differences(chat_model, questions, kept, other, max_new_tokens, world)))


def _differences(
    chat_model: ChatModel, questions: Sequence[AskedQuestion], kept: Mapping[AnswerKey, str],
    other: set[AnswerKey], max_new_tokens: int, world: int,
) -> list[ReplyDifference]:  # fmt: skip
    """Returns where the answers to the questions `other` differ from those to the questions alone."""
    shares = [(rank, world) for rank in range(world)] if other else []
    found: dict[AnswerKey, ReplyDifference] = {}
    for share in shares:
        for batch in batches(chat_model, questions, max_new_tokens=max_new_tokens, share=share):
            if other.isdisjoint(question.key for question in batch):
                continue
            again = replies(chat_model, batch, max_new_tokens=max_new_tokens)
            pairs = [pair for pair in zip(batch, again, strict=True) if pair[0].key in other]
            repeated = [(question, reply) for question, reply in pairs if reply.text == kept[question.key]]
            found |= {question.key: ReplyDifference(question.key) for question, _ in pairs}
            for each in differences(chat_model, repeated, max_new_tokens=max_new_tokens):
                found[each.key] = each
    return [found[question.key] for question in questions if question.key in other]
