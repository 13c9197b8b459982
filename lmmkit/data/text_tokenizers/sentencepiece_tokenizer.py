"""Text to token ids and back, by a sentencepiece model.

The ids are those of the LLaMA tokenizer in its non-legacy form, without its parser of control
tokens: here text is only ever text, and control tokens are ids that a layout puts down itself.
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
from lmmkit.errors.data import CORRUPT, KIND, SAVE, SURROGATE, TEXT_CONTROL, TEXT_FILE

KINDS = ("sentencepiece",)
FILE = "tokenizer.model"  # what the file is called in a model folder
MAX_BYTES = 64 << 20  # the largest model file that is read; LLaMA's has half a megabyte
SPACE = "\u2581"  # stands for a space inside pieces

# Appended to a serialized model these replace two fields of its normalizer (in protobuf's wire
# format a repeated message is merged into the first): no dummy prefix, and spaces are kept.
# A text that goes on after another must keep its leading space whatever the model was trained on.
_CONTINUED = b"\x1a\x04\x18\x00\x20\x00"


@dataclass(frozen=True, kw_only=True)
class SentencePieceTokenizer:
    """A sentencepiece model; pickles as its serialized bytes.

    `encode` for text that stands alone, `encode_continued` for text that goes on after text, and
    `encode_unprefixed` for the ids that transformers 4.31 gives to text after a control token.
    None of them ever gives a control id.
    """

    model: bytes = field(repr=False)
    kind: Literal["sentencepiece"] = "sentencepiece"

    @classmethod
    def open(cls, path: str | Path, kind: str = "sentencepiece") -> SentencePieceTokenizer:
        """The tokenizer in the file `path`, or in the folder `path` under its usual name.

        Raises `UserError` for a file that is missing, unreadable or no sentencepiece model.
        """
        if kind not in KINDS:
            nearest = did_you_mean(kind, KINDS)
            problem = KIND.at(str(path), got=f"kind `{kind}`", known=", ".join(KINDS), nearest=nearest)
            raise UserError(problem)
        path = Path(path)
        if path.is_dir():
            path = path / FILE
        tokenizer = cls(model=_read(path))
        try:
            ids = (tokenizer.bos, tokenizer.eos, *tokenizer.encode_continued("a b"))
        except Exception as error:  # the C++ side raises whatever the bytes lead it to
            reason = str(error) if isinstance(error, RuntimeError) else type(error).__name__
            problem = CORRUPT.at(str(path), got=reason, expected="a sentencepiece model")
            raise UserError(problem) from error
        if min(ids) < 0:
            got = "a model without bos or eos"
            raise UserError(TEXT_CONTROL.at(str(path), got=got, expected="a model with both"))
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of a text that stands alone: its first piece carries the dummy prefix.

        Raises `UserError` for a text with lone surrogates, which no UTF-8 can spell.
        """
        return self._standing.encode(_spelt(text))

    def encode_continued(self, text: str) -> list[int]:
        """Ids of a text that directly follows text or a control token: no dummy prefix."""
        return self._continued.encode(_spelt(text))

    def encode_unprefixed(self, text: str) -> list[int]:
        """Ids of a text standing alone whose dummy prefix is then cut off the first piece.

        Other pieces than `encode_continued` gives, because the cut comes after the merging. A
        text that begins with a space keeps its prefix. Where the rest of the first piece is no
        piece of its own (4.31 puts down the unknown token), `encode_continued` has to do.
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
        """The text of these ids. Ids that spell none are skipped: control tokens, unknown, and
        rows that a model's vocabulary has beyond the tokenizer's."""
        return self._standing.decode([int(i) for i in ids if int(i) in self._spelling])

    def control(self, spelling: str) -> int | None:
        """The id of a control token."""
        at = self._standing.piece_to_id(spelling)
        return at if self._standing.is_control(at) and self._standing.id_to_piece(at) == spelling else None

    def spelling(self, token: int) -> str:
        """How the vocabulary writes a token."""
        return self._standing.id_to_piece(token)

    def files(self) -> dict[str, bytes]:
        """What a folder needs to open it again."""
        return {FILE: self.model}

    @property
    def bos(self) -> int:
        """Id of the token that begins a sequence."""
        return self._standing.bos_id()

    @property
    def eos(self) -> int:
        """Id of the token that ends an answer."""
        return self._standing.eos_id()

    @property
    def size(self) -> int:
        """Number of pieces; ids are below it."""
        return self._standing.get_piece_size()

    def save(self, path: str | Path) -> None:
        """Writes the model file, whole or not at all. Raises `UserError` where that cannot be."""
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
    """`text`, if UTF-8 can spell it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"a lone surrogate {text[error.start]!a}"
        raise UserError(SURROGATE.at(f"text at character {error.start}", got=got)) from error
    return text
