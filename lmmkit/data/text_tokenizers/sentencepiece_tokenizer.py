"""Converts text to token ids and back, with a sentencepiece model.

The ids are those of the LLaMA tokenizer in its non-legacy form, but control tokens are never
recognised in a text. A layout inserts them as ids.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from sentencepiece import SentencePieceProcessor

from lmmkit.errors import UserError, did_you_mean
from lmmkit.errors.data import CORRUPT, SAVE, SURROGATE, TEXT_CONTROL, TEXT_FILE, TEXT_KIND

KINDS = ("sentencepiece",)
FILE = "tokenizer.model"  # the name of the file in a model folder
MAX_BYTES = 64 << 20  # the largest model file that is read; LLaMA's has half a megabyte
SPACE = "\u2581"  # represents a space inside pieces

# Appended to a serialized model, these bytes replace two fields of its normalizer (protobuf merges
# a repeated message into the first one): no dummy prefix, and spaces are kept. A text that follows
# another must keep its leading space, independent of the settings that the model was trained with.
_CONTINUED = b"\x1a\x04\x18\x00\x20\x00"


@dataclass(frozen=True, kw_only=True)
class SentencePieceTokenizer:
    """Holds a sentencepiece model; pickles as its serialized bytes.

    Use `encode` for a text on its own, `encode_continued` for a text that follows text, and
    `encode_unprefixed` for the ids that transformers 4.31 gives to a text after a control token.
    None of them ever returns a control id.
    """

    model: bytes = field(repr=False)
    kind: Literal["sentencepiece"] = "sentencepiece"

    @classmethod
    def open(cls, path: str | Path, kind: str = "sentencepiece") -> SentencePieceTokenizer:
        """Returns the tokenizer in the file `path`, or in the folder `path` under its usual name.

        Raises `UserError` for a file that is missing, unreadable or no sentencepiece model.
        """
        if kind not in KINDS:
            nearest = did_you_mean(kind, KINDS)
            problem = TEXT_KIND.at(str(path), got=f"kind `{kind}`", known=", ".join(KINDS), nearest=nearest)
            raise UserError(problem)
        path = Path(path)
        if path.is_dir():
            path = path / FILE
        tokenizer = cls(model=_read(path))
        try:
            ids = (tokenizer.bos, tokenizer.eos, *tokenizer.encode_continued("a b"))
        except Exception as error:  # bad bytes make the C++ code raise errors of many types
            reason = str(error) if isinstance(error, RuntimeError) else type(error).__name__
            problem = CORRUPT.at(str(path), got=reason, expected="a sentencepiece model")
            raise UserError(problem) from error
        if min(ids) < 0:
            got = "a model without bos or eos"
            raise UserError(TEXT_CONTROL.at(str(path), got=got, expected="a model with both"))
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text on its own: its first piece has the dummy prefix.

        Raises `UserError` for a text with lone surrogates, which UTF-8 cannot encode.
        """
        return self._standing.encode(_spelt(text))

    def encode_continued(self, text: str) -> list[int]:
        """Returns the ids of a text that directly follows text or a control token: no dummy prefix."""
        return self._continued.encode(_spelt(text))

    def encode_unprefixed(self, text: str) -> list[int]:
        """Returns the ids of a text on its own, with the dummy prefix then removed from the first piece.

        The pieces differ from those of `encode_continued`, because the prefix is removed after merging.
        A text that begins with a space keeps its prefix. If the vocabulary lacks the rest of the first
        piece (4.31 writes the unknown token), the result is that of `encode_continued`.
        """
        ids = self._standing.encode(_spelt(text))
        if not ids or text.startswith((" ", SPACE)):
            return ids
        first = self._standing.id_to_piece(ids[0])
        if first == SPACE:
            return ids[1:]
        rest = self._standing.piece_to_id(first.removeprefix(SPACE))
        if rest == self._standing.unk_id():
            return self.encode_continued(text)
        return [rest, *ids[1:]]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of these ids. Skips ids without text: control tokens, the unknown token, and
        ids that the model's vocabulary has but the tokenizer does not."""
        return self._standing.decode([int(i) for i in ids if int(i) in self._spelling])

    def control(self, spelling: str) -> int | None:
        """Returns the id of a control token; None if there is no such token."""
        at = self._standing.piece_to_id(spelling)
        return at if self._standing.is_control(at) and self._standing.id_to_piece(at) == spelling else None

    def spelling(self, token: int) -> str:
        """Returns the spelling of a token in the vocabulary."""
        return self._standing.id_to_piece(token)

    def files(self) -> dict[str, bytes]:
        """Returns the files, by name, from which a folder can be opened again."""
        return {FILE: self.model}

    @property
    def bos(self) -> int:
        """Returns the id of the token that begins a sequence."""
        return self._standing.bos_id()

    @property
    def eos(self) -> int:
        """Returns the id of the token that ends an answer."""
        return self._standing.eos_id()

    @property
    def size(self) -> int:
        """Returns the number of pieces. All ids are below it."""
        return self._standing.get_piece_size()

    def save(self, path: str | Path) -> None:
        """Writes the model file, completely or not at all. Raises `UserError` if it cannot be written."""
        path = Path(path)
        staged = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            staged.write_bytes(self.model)
            staged.replace(path)
        except OSError as error:
            staged.unlink(missing_ok=True)
            raise UserError(SAVE.at(str(path), got=error.strerror or str(error))) from error

    @cached_property
    def _standing(self) -> SentencePieceProcessor:
        return _processor(self.model)

    @cached_property
    def _continued(self) -> SentencePieceProcessor:
        return _processor(self.model + _CONTINUED)

    @cached_property
    def _spelling(self) -> frozenset[int]:
        sp = self._standing
        mute = (sp.is_control, sp.is_unknown, sp.is_unused)
        return frozenset(i for i in range(sp.get_piece_size()) if not any(f(i) for f in mute))

    def __getstate__(self) -> dict[str, object]:
        return {"model": self.model, "kind": self.kind}


def _processor(model: bytes) -> SentencePieceProcessor:
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    return processor


def _read(path: Path) -> bytes:
    most = MAX_BYTES >> 20
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or not 0 < found.st_size <= MAX_BYTES:
            got = f"{found.st_size} bytes, or no regular file"
            raise UserError(TEXT_FILE.at(str(path), got=got, most=most))
        return path.read_bytes()
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise UserError(TEXT_FILE.at(str(path), got=got, most=most)) from error


def _spelt(text: str) -> str:
    """Returns `text`. Raises `UserError` if UTF-8 cannot encode it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"a lone surrogate {text[error.start]!a}"
        raise UserError(SURROGATE.at(f"text at character {error.start}", got=got)) from error
    return text
