"""Asks a model many questions: in batches of similar length, each image read once for all its questions.

An answer is the same text as that of the question alone, up to rounding: where the two differ, two tokens were
almost equally likely. `differences` counts these cases.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from torch import Tensor

from lmmkit.api.layout import Layout, row_count
from lmmkit.api.sample import Sample, View
from lmmkit.data.chat_templates import stop_ids
from lmmkit.data.micro_batch.laid_out import LaidOut, SizedSample
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.data.rank_shares import balanced_shares
from lmmkit.data.sources.records import LISTED
from lmmkit.errors import Problem, raise_all
from lmmkit.errors.commands import TOO_LONG
from lmmkit.evaluate.answers.schema import AnswerKey
from lmmkit.inference.chat_model import PROMPT_ROWS, ChatModel
from lmmkit.inference.generate import generate, greedy
from lmmkit.memory_faults import naming_memory
from lmmkit.progress import counted, plural, working

CACHE_ROWS = 16_384  # of the KV cache, in one batch: its memory grows with this number


class AskedQuestion(NamedTuple):
    """Holds one question. `key` is unique; the last turn of `sample` is the user's."""

    key: AnswerKey
    sample: Sample


@dataclass(frozen=True)
class Reply:
    """Holds a greedy answer: the text, its token ids, and whether it was cut off at the largest number."""

    text: str
    ids: tuple[int, ...]
    hit_max_tokens: bool


class _Size(NamedTuple):
    """Holds the rows of a prompt, and those up to the end of its last image."""

    rows: int
    shared: int


@dataclass(frozen=True)
class _Chunk:
    """Holds questions on the same images that fit in one batch, by their numbers."""

    members: tuple[int, ...]
    packed: int
    longest: int


def ask(
    chat_model: ChatModel, questions: Sequence[AskedQuestion], *, max_new_tokens: int,
    on_replies: Callable[[list[tuple[AskedQuestion, Reply]]], None],
    done: Collection[AnswerKey] = (), share: tuple[int, int] = (0, 1), title: str = "answers",
) -> None:  # fmt: skip
    """Asks the questions that are not `done`, and calls `on_replies` with the replies of each batch.

    The batches depend on all questions, so a process that continues forms the same ones.

    Args:
        chat_model: the model.
        questions: all questions.
        max_new_tokens: largest number of tokens of an answer.
        on_replies: called with the questions of a batch and their replies.
        done: keys of questions that are not asked.
        share: (rank, world): the part of the batches that this process asks.
        title: of the progress that is shown.

    Raises:
        UserError: with all prompts that leave too little room for an answer.
        MachineError: if there is not enough memory. The replies that are there have been passed on.
    """
    formed = batches(chat_model, questions, max_new_tokens=max_new_tokens, share=share)
    missing = [[question for question in batch if question.key not in done] for batch in formed]
    finished = 0
    with naming_memory(title), working(title, sum(map(len, missing)), unit="questions") as move:
        for asked in filter(None, missing):
            n, tokens = len(asked), count(1)

            def chosen(logits_QV: Tensor, before=finished, n=n, tokens=tokens) -> Tensor:
                move(before + n * next(tokens) / (max_new_tokens + 1))
                return greedy(logits_QV)

            found = replies(chat_model, asked, max_new_tokens=max_new_tokens, choose=chosen)
            on_replies(list(zip(asked, found, strict=True)))
            finished += len(asked)
            move(finished)


def batches(
    chat_model: ChatModel, questions: Sequence[AskedQuestion], *, max_new_tokens: int, share: tuple[int, int] = (0, 1)
) -> Iterator[list[AskedQuestion]]:  # fmt: skip
    """Yields the questions in batches, the longest first. Those on the same images are together."""
    sizes = _sizes(chat_model, questions, max_new_tokens)
    chunks = sorted(_chunks(questions, sizes, max_new_tokens), key=lambda chunk: -chunk.longest)
    rank, world = share
    own = [chunks[i] for i in balanced_shares([chunk.packed for chunk in chunks], world)[rank]]
    batch: list[int] = []
    packed = longest = 0
    for chunk in own:
        most = max(longest, chunk.longest)
        if batch and not _fits(packed + chunk.packed, len(batch) + len(chunk.members), most, max_new_tokens):
            yield [questions[i] for i in batch]
            batch, packed, most = [], 0, chunk.longest
        batch, packed, longest = [*batch, *chunk.members], packed + chunk.packed, most
    if batch:
        yield [questions[i] for i in batch]


def replies(
    chat_model: ChatModel, questions: Sequence[AskedQuestion], *, max_new_tokens: int,
    choose: Callable[[Tensor], Tensor] = greedy,
) -> list[Reply]:  # fmt: skip
    """Returns the replies to the questions of one batch, in order."""
    packer, tokenizer = chat_model.packer.without_terms(), chat_model.views.tokenizer
    members = [LaidOut(view, chat_model.views.prompt(view)) for view in _views(questions)]
    samples = [SizedSample((member,), 0) for member in members]
    batch, paths = packer.pack(samples, read_images(samples, chat_model.reader))
    batch = batch.to(chat_model.device)

    def chosen(logits_QV: Tensor) -> Tensor:
        chat_model.poll()
        return choose(logits_QV)

    ids = generate(
        chat_model.objective.lmm, batch, [int(path[-1]) for path in paths],
        tokens=chat_model.objective.tokens(batch), max_new_tokens=max_new_tokens,
        eos=stop_ids(questions[0].sample.template, tokenizer, chat_model.prepared.end_ids.eos), choose=chosen,
        feeds=chat_model.feeds(samples),
    )  # fmt: skip
    return [Reply(tokenizer.decode(each).strip(), tuple(each), len(each) == max_new_tokens) for each in ids]


class ReplyDifference(NamedTuple):
    """Describes a reply that differs from the one to the question alone: from which token on, and by how much the
    question alone prefers its token there to the next best one (the difference of their logits). Both are None if the
    place is not known: its batch now gives another reply than the one that was kept."""

    key: AnswerKey
    token: int | None = None
    gap: float | None = None


def differences(
    chat_model: ChatModel, asked: Iterable[tuple[AskedQuestion, Reply]], *, max_new_tokens: int
) -> list[ReplyDifference]:  # fmt: skip
    """Asks each question alone, and returns the replies that differ."""
    found = []
    for question, reply in asked:
        gaps: list[float] = []

        def choose(logits_QV: Tensor, gaps: list[float] = gaps) -> Tensor:
            first, second = logits_QV[0].topk(2).values.tolist()
            gaps.append(first - second)
            return greedy(logits_QV)

        (alone,) = replies(chat_model, [question], max_new_tokens=max_new_tokens, choose=choose)
        if alone.ids != reply.ids:
            pairs = zip(alone.ids, reply.ids, strict=False)
            shorter = min(len(alone.ids), len(reply.ids))
            token = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
            found.append(ReplyDifference(question.key, token, gaps[token]))
    return found


def _views(questions: Iterable[AskedQuestion]) -> list[View]:
    return [View(sample=question.sample) for question in questions]


def _sizes(chat_model: ChatModel, questions: Sequence[AskedQuestion], max_new_tokens: int) -> list[_Size]:
    """Returns the size of each prompt. Raises `UserError` for those that leave too little room, with their number."""
    room = {"context": chat_model.views.context, "max_new_tokens": max_new_tokens}
    sizes: list[_Size] = []
    problems: dict[str, Problem] = {}  # a question has the same fault under each control
    for question, view in zip(counted("measuring prompts", questions), _views(questions), strict=True):
        layout = chat_model.views.prompt(view)
        sizes.append(_Size(row_count(layout), _rows_to_last_image(layout)))
        if sizes[-1].rows + max_new_tokens > chat_model.views.context:
            where = f"sample {question.sample.key}"
            problems.setdefault(where, TOO_LONG.at(where, got=f"a prompt of {sizes[-1].rows} rows", **room))
    listed, more = list(problems.values())[:LISTED], len(problems) - LISTED
    if more > 0:
        listed.append(TOO_LONG.at("further samples", got=plural(more, "more such prompt"), **room))
    raise_all(listed)
    return sizes


def _rows_to_last_image(layout: Layout) -> int:
    last = max((i for i, span in enumerate(layout) if span.kind == "image"), default=-1)
    return sum(span.n for span in layout[: last + 1])


def _chunks(
    questions: Sequence[AskedQuestion], sizes: Sequence[_Size], max_new_tokens: int
) -> Iterator[_Chunk]:
    """Yields the questions by their images, at most as many as fit in one batch, the longest first."""
    by_images: dict[object, list[int]] = {}
    for i, question in enumerate(questions):
        by_images.setdefault((question.sample.images, question.sample.image_fit), []).append(i)
    for group in by_images.values():
        members: list[int] = []
        packed = 0
        for i in sorted(group, key=lambda i: -sizes[i].rows):
            longest = sizes[members[0]].rows if members else sizes[i].rows
            own = sizes[i].rows - (sizes[i].shared if members else 0)
            if members and not _fits(packed + own, len(members) + 1, longest, max_new_tokens):
                yield _Chunk(tuple(members), packed, longest)
                members, packed, own = [], 0, sizes[i].rows
            members.append(i)
            packed += own
        yield _Chunk(tuple(members), packed, sizes[members[0]].rows)


def _fits(packed: int, questions: int, longest: int, max_new_tokens: int) -> bool:
    return packed <= PROMPT_ROWS and questions * (longest + max_new_tokens) <= CACHE_ROWS
