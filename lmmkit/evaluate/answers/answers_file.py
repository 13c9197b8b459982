"""The folder of one task's answers: `answers.json`, and `answers.jsonl`, which is written as answers come.

A killed evaluation continues from it. Rank R > 0 of several appends to `answers.rank-R.jsonl`; the first rank
merges these files at the start and at the end, in official order, so the result does not depend on the ranks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lmmkit.errors import MachineError, Problem, UserError, raise_all
from lmmkit.errors.answers import ANSWERS_CANNOT_WRITE, CHANGED, DUPLICATE
from lmmkit.errors.training import RUN_DAMAGED
from lmmkit.evaluate.answers.schema import CONDITIONS, FORMAT, Answer, AnswerKey, answer_of
from lmmkit.progress import plural
from lmmkit.runs.files import io_point, read_json, unwritable, write_json_atomic, write_text_atomic

NAME, HEADER = "answers.jsonl", "answers.json"
IDENTITY = ("format", "task", "split", "data_sha256", "model", "dtype", "decoding", "prompt")
"""The keys of `answers.json` that later answers must share."""


@dataclass(frozen=True)
class AnswersFolder:
    """Names and reads the files of one task's answers. `order`: the place of each id in the official order."""

    path: Path
    order: Mapping[str, int]

    @property
    def answers(self) -> Path:
        """Returns the path of the answers."""
        return self.path / NAME

    def begin(self, header: Mapping[str, Any]) -> list[Answer]:
        """Creates the folder, or checks that its answers belong to `header`; returns the answers of an earlier start.

        Raises `UserError` if model, data or settings differ, or an answer is there twice or damaged.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            got = error.strerror or str(error)
            raise MachineError(ANSWERS_CANNOT_WRITE.at(str(self.path), got=got)) from error
        file = self.path / HEADER
        if file.is_file():
            raise_all(header_changes(read_json(file), header, str(file)))
        else:
            write_json_atomic(file, {"format": FORMAT, **header})
        return self.merge()

    def merge(self, judged: Callable[[Answer], Answer] = lambda answer: answer) -> list[Answer]:
        """Merges the files of all ranks into `answers.jsonl`, in official order; returns the answers, each as `judged`
        gives it.

        Raises `UserError` for a damaged line, and for two answers to one question that differ.
        """
        parts = sorted(self.path.glob("answers.rank-*.jsonl"))
        kept = by_key(read_answers(self.answers), str(self.answers))
        for part in parts:
            for answer in by_key(read_answers(part), str(part)).values():
                # a process that died while merging has left equal lines in both files
                if kept.setdefault(answer.key, answer) != answer:
                    raise UserError(
                        DUPLICATE.at(str(part), got=f"another answer to `{answer.id}` ({answer.condition})")
                    )
        ordered = sorted(map(judged, kept.values()), key=self._place)
        text = "".join(answer.as_line() for answer in ordered)
        if parts or not self.answers.is_file() or self.answers.read_bytes() != text.encode():
            write_text_atomic(self.answers, text)
        for part in parts:
            part.unlink()
        return ordered

    def appender(self, rank: int) -> Appender:
        """Returns the file that a rank appends to."""
        return Appender(self.answers if rank == 0 else self.path / f"answers.rank-{rank}.jsonl")

    def _place(self, answer: Answer) -> tuple[int, int, str]:
        return CONDITIONS.index(answer.condition), self.order.get(answer.id, len(self.order)), answer.id


class Appender:
    """Appends answers; each call of `add` reaches the operating system before it returns."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file: TextIO = path.open("a", encoding="utf-8")
            drop_torn_line(path)
        except OSError as error:
            raise MachineError(unwritable(path, error)) from error

    def add(self, answers: Iterable[Answer]) -> None:
        """Appends answers. Raises `MachineError` if the file cannot be written."""
        try:
            io_point(f"append to {self.path.name}")
            self._file.write("".join(answer.as_line() for answer in answers))
            self._file.flush()
        except OSError as error:
            raise MachineError(unwritable(self.path, error)) from error

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def read_answers(path: Path) -> list[Answer]:
    """Returns the answers of a file; [] without a file. An incomplete last line, of a killed process, is left
    out. Raises `UserError` for any other damaged line, and for a file that cannot be read."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        got, fix = error.strerror or str(error), "Restore the file, or its rights."
        raise UserError(RUN_DAMAGED.at(str(path), got=got, content="a file to read", fix=fix)) from None
    lines = content.split(b"\n")[:-1]
    return [answer_of(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def by_key(answers: Iterable[Answer], where: str) -> dict[AnswerKey, Answer]:
    """Returns the answers by condition and id. Raises `UserError` if there are two of one."""
    found: dict[AnswerKey, Answer] = {}
    twice: list[AnswerKey] = []
    for answer in answers:
        if answer.key in found:
            twice.append(answer.key)
        found[answer.key] = answer
    if twice:
        named = ", ".join(f"`{id}` ({condition})" for condition, id in twice[:5])
        raise UserError(DUPLICATE.at(where, got=f"{plural(len(twice), 'more answer')}, to {named}"))
    return found


def header_changes(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> list[Problem]:
    """Returns a problem for each key of `IDENTITY` that differs."""
    now = {"format": FORMAT, **now}
    return [
        CHANGED.at(f"{where}: {key}", got=f"{now.get(key)}", before=f"{before.get(key)}")
        for key in IDENTITY
        if before.get(key) != now.get(key)
    ]


def drop_torn_line(path: Path) -> None:
    """Removes what follows the last newline."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
