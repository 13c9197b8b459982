"""What the page of `lmmkit chat --web` shows and changes: a conversation and its images, one change at a time."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

from lmmkit.api.sample import ImageFit
from lmmkit.data.image_files.image_file import small_image
from lmmkit.errors import LmmkitError, MachineError, UserError
from lmmkit.errors.commands import CANNOT_WRITE
from lmmkit.inference.conversation import Conversation
from lmmkit.memory_faults import naming_memory

MOST_BYTES = 32 * 2**20  # of an uploaded image
MOST_IMAGES = 64  # since the conversation began
MOST_TEXT = 64 * 2**10  # bytes of a question
SIDE = 1024  # of an image on the page
FINE = 256  # sides up to which it is stored without loss


class Refused(Exception):
    """Reports a request that the page cannot have: an HTTP status, and a text for the user."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status, self.text = status, text


@dataclass(frozen=True, kw_only=True)
class About:
    """Describes the model for the page. `notes`: on the images that wait at the start. `questions`: to offer."""

    title: str
    notes: Sequence[str] = ()
    questions: Sequence[str] = ()


class ChatSession:
    """Lets the threads of a server use one conversation. Uploaded images are files of `folder`."""

    def __init__(self, conversation: Conversation, folder: Path, about: About):
        self._conversation, self._folder, self._about = conversation, folder, about
        self._files: dict[int, str] = {}
        self._given = 0
        self._work = Lock()
        for path in conversation.waiting:
            self._number(path)

    def state(self) -> dict[str, Any]:
        """Returns all that the page shows, as JSON."""
        talk, fit = self._conversation, self._conversation.chat_model.prepared.recipe.model.chat.image_fit
        images = iter(self._numbers(talk.images))
        turns = [
            {"role": turn.role, "text": turn.text, "images": list(islice(images, turn.images))}
            for turn in talk.turns
        ]
        notes = self._about.notes if set(talk.first) <= set(self._files.values()) else ()
        return {
            "title": self._about.title, "notes": [*notes], "questions": [*self._about.questions],
            "fit": shown_fit(fit), "vision": talk.chat_model.prepared.image_rows > 0, "turns": turns,
            "waiting": self._numbers(talk.waiting), "most": {"bytes": MOST_BYTES, "text": MOST_TEXT},
        }  # fmt: skip

    def add_image(self, data: bytes) -> int:
        """Adds an uploaded image to the next question, and returns its number. Raises `Refused` if it is none that
        the model can read, if there are too many, or if the disk is full."""
        with self._working():
            if len(self._files) >= MOST_IMAGES:
                raise Refused(413, f"at most {MOST_IMAGES} images; a new conversation begins without any")
            path = self._folder / str(self._given)
            try:
                path.write_bytes(data)
                self._conversation.add_images([path])
            except OSError as error:
                raise MachineError(CANNOT_WRITE.at(str(path), got=error.strerror or str(error))) from error
            finally:
                if str(path) not in self._conversation.waiting:
                    path.unlink(missing_ok=True)
            return self._number(self._conversation.waiting[-1])

    def remove_image(self, number: int) -> None:
        """Removes an image from those of the next question."""
        with self._working():
            self._conversation.remove_image(self._path(number))
            self._forget(self._files.pop(number))

    def preview(self, number: int) -> bytes:
        """Returns an image as WebP, upright and of moderate size: the bytes of an upload themselves are never sent."""
        try:
            image = small_image(self._path(number), SIDE)
        except UserError as error:  # the file has been changed or removed
            raise Refused(404, problem_text(error)) from error
        out = io.BytesIO()
        image.save(out, "WEBP", quality=90, lossless=max(image.size) <= FINE)
        return out.getvalue()

    def ask(self, text: str, turns: int, on_text: Callable[[str], None]) -> dict[str, Any]:
        """Asks a question after as many turns as the page shows. Returns how many they are then, and whether the answer
        was stopped.

        Raises `Refused` if the question cannot be asked, or if the page shows another conversation.
        """
        with self._working():
            if turns != len(self._conversation.turns):
                raise Refused(409, "the conversation has been changed elsewhere; this page is now up to date")
            self._conversation.ask(text, on_text)
            return {"turns": len(self._conversation.turns), "stopped": self._conversation.stopped}

    def stop(self) -> None:
        """Stops the answer that is being written, if there is one."""
        self._conversation.stop()

    def reset(self) -> None:
        """Begins as at the start: without turns, and with the first images for the next question.

        Raises `Refused` if these cannot be read any more; the rest is done.
        """
        with self._working():
            for path in self._files.values():
                self._forget(path)
            self._files.clear()
            self._conversation.reset()
            for path in self._conversation.waiting:
                self._number(path)

    def attention(self, turn: int) -> list[dict[str, Any]]:
        """Returns for each image before an answer the attention of the answer to it and to each of its patches."""
        with self._working():
            talk = self._conversation
            if not 0 <= turn < len(talk.turns) or talk.turns[turn].role != "assistant":
                raise Refused(404, "there is no such answer")
            found = talk.attention(turn)
            if found is None:
                raise Refused(404, "there is no image before this answer, or no text in it")
            return [
                {
                    "image": number, "mass": each.mass, "even": each.even,
                    "shares": None if each.map_XY is None else each.map_XY.float().cpu().tolist(),
                }
                for number, each in zip(self._numbers(talk.images), found.images, strict=False)
            ]  # fmt: skip

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Runs the block if no other one runs. Raises `Refused` otherwise, and for a problem in the block."""
        if not self._work.acquire(blocking=False):
            raise Refused(409, "the model is at work; wait until it is done, or stop the answer")
        try:
            with naming_memory("this request"):
                yield
        except LmmkitError as error:
            raise Refused(503 if isinstance(error, MachineError) else 400, problem_text(error)) from error
        finally:
            self._work.release()

    def _number(self, path: str) -> int:
        number, self._given = self._given, self._given + 1
        self._files[number] = path
        return number

    def _numbers(self, paths: Sequence[str]) -> list[int]:
        numbers = {path: number for number, path in self._files.items()}
        return [numbers[path] for path in paths if path in numbers]

    def _path(self, number: int) -> str:
        if number not in self._files:
            raise Refused(404, "there is no such image")
        return self._files[number]

    def _forget(self, path: str) -> None:
        """Removes the file of an uploaded image; other files are the user's."""
        if Path(path).parent == self._folder:
            Path(path).unlink(missing_ok=True)


def shown_fit(fit: ImageFit) -> str:
    """Returns which part of an image the map of its patches covers: pad, crop or stretch. Of an image that is cut into
    tiles it is the overview, which shows all of it, as one that keeps its shape does."""
    return fit if isinstance(fit, str) else "stretch"


def problem_text(error: LmmkitError) -> str:
    """Returns the problems of an error as one text, without their places, which are files of the server."""
    return "; ".join(f"got {p.got}, expected {p.expected} [{p.code}]" for p in error.problems)
