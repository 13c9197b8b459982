"""A conversation with a model: turns, their images, and images for the next question."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Event

from lmmkit.api.layout import row_count
from lmmkit.api.sample import Image, Sample, Turn, View
from lmmkit.data.image_files.image_file import check_whole
from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.inference.chat_model import ChatModel
from lmmkit.inference.generate import Chooser, greedy
from lmmkit.inference.image_attention import ImageAttention, answer_attention


class AnswerStopped(Exception):
    """Ends the work on an answer. What is written of it remains."""


class Conversation:
    """Holds the turns of a conversation, `images`, the files of all its questions in their order, and `waiting`, those
    for the next question. It begins with the images `first`. `stop` may be called from another thread; all else is for
    one thread at a time."""

    def __init__(
        self, chat_model: ChatModel, *, max_new_tokens: int, choose: Chooser = greedy,
        first: Sequence[str | os.PathLike[str]] = (),
    ):  # fmt: skip
        self._stopped = Event()
        self.chat_model = replace(chat_model, poll=self._poll)
        self.max_new_tokens, self.choose = max_new_tokens, choose
        self.first = tuple(map(_absolute, first))
        self.reset()

    def reset(self) -> None:
        """Begins as at the start: without turns, and with the first images for the next question.

        Raises `UserError` as `add_images`, if these cannot be read any more; the rest is done.
        """
        self.turns: tuple[Turn, ...] = ()
        self.images: tuple[str, ...] = ()
        self.waiting: tuple[str, ...] = ()
        if self.first:
            self.add_images(self.first)

    def add_images(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        """Adds files to the images of the next question. Raises `UserError` with the problems of all, and adds none,
        if one of them is no image that the model can read, or if they leave no space for a question."""
        found = list(map(_absolute, paths))
        problems: list[Problem] = []
        for path in found:
            try:
                check_whole(path, self.chat_model.prepared.recipe.model.chat.image_fit)
            except UserError as error:
                problems += error.problems
        raise_all(dict.fromkeys(problems))
        self.rows(found)
        self.waiting += tuple(found)

    def rows(self, more: Sequence[str] = ()) -> int:
        """Returns the number of rows that the next question takes with all before it, apart from its text.

        `more`: further images for it. Raises `UserError` if they cannot be read or leave no space for an answer.
        """
        images = (*self.waiting, *more)
        sample = self._sample(Turn("user", "", images=len(images)), images)
        layout = self.chat_model.fitting(View(sample=sample), self.max_new_tokens)
        return row_count(layout)

    def remove_image(self, path: str) -> None:
        """Removes a file from the images of the next question, if it is one of them."""
        at = self.waiting.index(path) if path in self.waiting else len(self.waiting)
        self.waiting = (*self.waiting[:at], *self.waiting[at + 1 :])

    def ask(self, text: str, on_text: Callable[[str], None] = lambda part: None) -> str:
        """Asks a question about the waiting images, and returns the answer, which becomes part of the conversation.

        `on_text` is called with each new part of it. An answer that is stopped remains as far as it is written; a
        question whose answer has no part then is forgotten, and its images wait for the next one. The same is so if
        `UserError` is raised, for a question that cannot be asked, or `MachineError`, without enough memory.
        """
        self._stopped.clear()
        question, parts = Turn("user", text, images=len(self.waiting)), []
        answer: str | None = None  # until it is complete

        def add(part: str) -> None:
            parts.append(part)
            on_text(part)

        try:
            view = View(sample=self._sample(question, self.waiting))
            (answer,) = self.chat_model.answer(
                [[view]], max_new_tokens=self.max_new_tokens, choose=self.choose, on_text=add
            )
        except AnswerStopped:
            pass
        finally:
            if answer is not None or parts:
                answer = "".join(parts) if answer is None else answer
                self.turns = (*self.turns, question, Turn("assistant", answer))
                self.images, self.waiting = (*self.images, *self.waiting), ()
        return answer or ""

    def stop(self) -> None:
        """Stops the answer that another thread waits for, before its next token."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Returns whether the last answer was stopped."""
        return self._stopped.is_set()

    def attention(self, turn: int) -> ImageAttention | None:
        """Returns the attention of an answer, by the number of its turn, to the images of all questions before it;
        None if there are none or it has no text."""
        turns = (*(replace(each, supervised=False) for each in self.turns[:turn]), self.turns[turn])
        images = self.images[: sum(each.images for each in turns)]
        if not images or not self.turns[turn].text:
            return None
        return answer_attention(self.chat_model, self.chat_model.sample(turns, list(map(Image, images))))

    def _sample(self, question: Turn, images: Sequence[str]) -> Sample:
        files = [Image(path) for path in (*self.images, *images)]
        return self.chat_model.sample((*self.turns, question), files)

    def _poll(self) -> None:
        if self._stopped.is_set():
            raise AnswerStopped


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(os.path.expanduser(path))
