"""Answers the questions of a task, keeps every answer, and makes the figures.

The questions of a benchmark and those of a task of one's own take the same way: items, each with the sample
that shows it to the model, and a `Scorer` for the answers.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

import lmmkit
from lmmkit.api.sample import Image, ImageFit, Sample, Turn
from lmmkit.data.image_files.image_file import image_place
from lmmkit.errors import raise_all
from lmmkit.errors.answers import CHANGED
from lmmkit.evaluate.answers.answers_file import AnswersFolder
from lmmkit.evaluate.answers.outcome import Answered, outcome_of, write_task_summary
from lmmkit.evaluate.answers.schema import OWN, Answer, AnswerKey, data_sha, prompt_sha
from lmmkit.evaluate.answers.scorer import Scorer
from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item
from lmmkit.evaluate.controls import with_controls
from lmmkit.evaluate.keep import Keep
from lmmkit.evaluate.questions.alone import ask_alone
from lmmkit.evaluate.questions.asking import AskedQuestion, Reply, ask
from lmmkit.evaluate.questions.attention_file import attention_figure
from lmmkit.inference.chat_model import ChatModel
from lmmkit.progress import weighed, working
from lmmkit.recipe import Control
from lmmkit.runs.files import file_crc32


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """Holds the questions of a task. `samples`: what the model gets for each item, without an answer. `data`: the
    hash of all items of the task, also of those that a limit leaves out; `total`: their number."""

    task: str
    split: str
    data: str
    total: int
    scorer: Scorer
    items: Sequence[Item]
    samples: Sequence[Sample]
    max_new_tokens: int
    majority: Sequence[str | None] = ()

    @property
    def whole(self) -> bool:
        """Returns whether no limit leaves out items."""
        return len(self.items) == self.total


def benchmark_questions(
    benchmark: Benchmark, items: Sequence[Item], *, task: str, split: str, template: str, image_fit: ImageFit,
    system: str = "", max_new_tokens: int | None = None,
) -> QuestionSet:  # fmt: skip
    """Returns the questions of a benchmark for a model: the images, and then the prompt, in one user turn."""
    samples = [
        Sample(
            key=item.id, turns=(Turn("user", item.prompt, images=len(item.images)),),
            images=tuple(map(Image, item.images)), template=template, image_fit=image_fit, system=system,
        )
        for item in items
    ]  # fmt: skip
    return QuestionSet(
        task=task, split=split, data=data_sha(items), total=len(items), scorer=benchmark, items=items, samples=samples,
        max_new_tokens=max_new_tokens or benchmark.max_new_tokens,
    )  # fmt: skip


def answer_questions(
    chat_model: ChatModel, asked: QuestionSet, *, controls: Iterable[Control] = (), keep: Keep | None = None,
    attention: bool = False,
) -> Answered:  # fmt: skip
    """Asks every question that has no answer yet, and returns all answers with their figures.

    Without `keep` nothing is read or written. `attention`: also measure the attention to the images.
    Raises `UserError` if the answers that are kept belong to another model, other data, other prompts or other
    settings.
    """
    found = with_controls(asked.samples, controls, chat_model.prepared.dims.image)
    names = [name for name in found if name != OWN]
    questions = [
        AskedQuestion((condition, item.id), sample)
        for condition, samples in found.items()
        for item, own, sample in zip(asked.items, asked.samples, samples, strict=True)
        if condition == OWN or sample.images != own.images
    ]
    answered = _Answers(asked)
    if keep is None:
        collected: list[Answer] = []
        ask(
            chat_model, questions, max_new_tokens=asked.max_new_tokens,
            on_replies=lambda replies: collected.extend(map(answered.of, replies)),
        )  # fmt: skip
        return outcome_of(asked.items, asked.scorer, names, {answer.key: answer for answer in collected})
    answers = _kept(chat_model, asked, questions, answered, keep)
    with working(f"{asked.task}: scoring"):
        outcome = outcome_of(asked.items, asked.scorer, names, answers)
    if not asked.whole:
        outcome.coverage["of"] = asked.total
    if keep.ranks.rank == 0:
        if attention:
            texts = [(s, a.raw) for s in asked.samples if (a := answers.get((OWN, s.key))) is not None]
            outcome.figures.update(attention_figure(chat_model, texts, keep.folder))
        if keep.alone:
            alone = ask_alone(
                chat_model, questions, {key: answer.raw for key, answer in answers.items()}, keep.alone,
                max_new_tokens=asked.max_new_tokens, world=keep.ranks.world, title=f"{asked.task}: questions alone",
            )  # fmt: skip
            outcome = replace(outcome, alone=alone.as_json())
        write_task_summary(
            asked.task, asked.split, asked.scorer, asked.items, outcome, keep.folder, whole=asked.whole
        )
    return outcome


class _Answers:
    """Makes answers from replies."""

    def __init__(self, asked: QuestionSet):
        self.asked = asked
        self.row = {item.id: row for row, item in enumerate(asked.items)}

    def of(self, replied: tuple[AskedQuestion, Reply]) -> Answer:
        """Returns the answer of a reply, with its verdict."""
        (condition, id), reply = replied[0].key, replied[1]
        row, asked = self.row[id], self.asked
        item = asked.items[row]
        shown = tuple(map(image_place, replied[0].sample.images))
        answer = Answer(
            task=asked.task, split=asked.split, data=asked.data[:16], id=id, row=row, condition=condition,
            question=item.prompt, images=shown, cluster=item.cluster, groups=dict(item.groups),
            prompt_sha=prompt_sha(item.prompt, item.images), raw=reply.text, gold=item.gold,
            n_new_tokens=len(reply.ids), hit_max_tokens=reply.hit_max_tokens,
            majority=asked.majority[row] if asked.majority else None,
        )  # fmt: skip
        return answer.judged(asked.scorer.verdict(item, reply.text))

    def again(self, answer: Answer) -> Answer:
        """Returns an answer that was kept, scored by the present scorer; unchanged if it has no item."""
        row = self.row.get(answer.id)
        if row is None:
            return answer
        return answer.judged(self.asked.scorer.verdict(self.asked.items[row], answer.raw))

    def prompt_sha_of(self, id: str) -> str | None:
        """Returns the hash of an item's prompt; None if there is no such item."""
        if id not in self.row:
            return None
        item = self.asked.items[self.row[id]]
        return prompt_sha(item.prompt, item.images)


def _kept(
    chat_model: ChatModel, asked: QuestionSet, questions: Sequence[AskedQuestion], answered: _Answers, keep: Keep
) -> dict[AnswerKey, Answer]:  # fmt: skip
    """Asks the questions that the folder has no answer to; returns its answers."""
    ranks, folder = keep.ranks, AnswersFolder(keep.folder, answered.row)
    before: list[Answer] = []
    if ranks.rank == 0:
        before = folder.begin(header_of(chat_model, asked, keep.model))
        raise_all(
            CHANGED.at(
                f"{folder.answers}: {answer.id}", got="another prompt", before="the prompt of that answer"
            )
            for answer in before
            if answered.prompt_sha_of(answer.id) not in (None, answer.prompt_sha)
        )
    done = {(condition, id) for condition, id in ranks.gather([answer.key for answer in before])[0]}
    with folder.appender(ranks.rank) as file:
        ask(
            chat_model, questions, max_new_tokens=asked.max_new_tokens, done=done, title=f"{asked.task}: answers",
            on_replies=lambda replies: file.add(map(answered.of, replies)), share=(ranks.rank, ranks.world),
        )  # fmt: skip
    ranks.gather(None)
    merged = folder.merge(answered.again) if ranks.rank == 0 else []
    ranks.gather(None)
    wanted = {question.key for question in questions}
    return {answer.key: answer for answer in merged if answer.key in wanted}


def header_of(chat_model: ChatModel, asked: QuestionSet, model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `answers.json`: what the answers come from."""
    samples = asked.samples
    return {
        "task": asked.task,
        "benchmark": asked.scorer.name,
        "split": asked.split,
        "data_sha256": asked.data,
        "items": len(samples),
        "model": model["checkpoint"],
        "model_folder": model["folder"],
        "dtype": str(next(chat_model.objective.parameters()).dtype).removeprefix("torch."),
        "decoding": {"kind": "greedy", "max_new_tokens": asked.max_new_tokens},
        "prompt": {
            "template": sorted({sample.template for sample in samples}),
            "image_fit": sorted({str(sample.image_fit) for sample in samples}),
            "system": sorted({sample.system for sample in samples}),
        },
        "device": chat_model.device.type,
        "versions": {
            "lmmkit": lmmkit.__version__, "python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__, "pillow": PIL.__version__,
        },
    }  # fmt: skip


def model_facts(folder: Path) -> dict[str, Any]:
    """Returns the path of a model folder, and a hash of its files: the same for the same weights and settings."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    content = [
        f"{path.name} {path.stat().st_size} {file_crc32(path):08x}\n"
        for path in weighed(f"identifying {folder.name}", files, lambda path: path.stat().st_size)
    ]
    return {
        "folder": str(folder.resolve()),
        "checkpoint": hashlib.sha256("".join(content).encode()).hexdigest(),
    }


def limited(asked: QuestionSet, n: int | str) -> QuestionSet:
    """Returns the first `n` questions; all with "all"."""
    if n == "all" or int(n) >= len(asked.items):
        return asked
    first = slice(int(n))
    return replace(
        asked, items=asked.items[first], samples=asked.samples[first], majority=asked.majority[first]
    )
