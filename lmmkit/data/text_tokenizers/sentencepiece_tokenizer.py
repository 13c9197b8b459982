"""Converts text to token ids and back, with a sentencepiece model.

The ids are those of the LLaMA tokenizer in its non-legacy form, but control tokens are never
recognised in a text. A layout inserts them as ids.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from lmmkit.data.text_tokenizers.offsets import Offsets, offsets_of, read_pieces
from lmmkit.errors import UserError
from lmmkit.errors.data import SURROGATE, TOKENIZER_CONTROL, TOKENIZER_DAMAGED, TOKENIZER_FILE

TOKENIZER_MODEL = "tokenizer.model"  # the name of the file in a model folder
ADDED_TOKENS = "added_tokens.json"
MAX_IDS = 2**24  # each is a matrix row of an embedding
_MAX_BYTES = 64 << 20  # the largest model file that is read; LLaMA's has half a megabyte
SPACE = "\u2581"  # represents a space inside pieces

# Appended to a serialized model, these bytes replace two fields of its normalizer (protobuf merges
# a repeated message into the first one): no dummy prefix, and spaces are kept. A text that follows
# another must keep its leading space, independent of the settings that the model was trained with.
_CONTINUED = b"\x1a\x04\x18\x00\x20\x00"


@dataclass(frozen=True, kw_only=True)
class SentencePieceTokenizer:
    """Holds a sentencepiece model, and control tokens added to it, by id; pickles as bytes and tokens.

    Use `encode` for a text on its own, `encode_continued` for a text that follows text, and
    `encode_unprefixed` for the ids that transformers 4.31 gives to a text after a control token.
    None of them ever returns a control id.
    """

    model: bytes = field(repr=False)
    added: tuple[tuple[int, str], ...] = ()

    @classmethod
    def open(cls, path: str | Path) -> SentencePieceTokenizer:
        """Returns the tokenizer in the file `path`.

        Raises `UserError` for a file that is missing, unreadable or no sentencepiece model.
        """
        path = Path(path)
        tokenizer = cls(model=read_tokenizer_file(path))
        try:
            ids = (tokenizer.bos, tokenizer.eos, *tokenizer.encode_continued("a b"))
        except Exception as error:  # bad bytes make the C++ code raise errors of many types
            reason = str(error) if isinstance(error, RuntimeError) else type(error).__name__
            problem = TOKENIZER_DAMAGED.at(str(path), got=reason, expected="a sentencepiece model")
            raise UserError(problem) from error
        if min(ids) < 0:
            got = "a model without bos or eos"
            raise UserError(TOKENIZER_CONTROL.at(str(path), got=got, expected="a model with both"))
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text on its own: its first piece has the dummy prefix.

        Raises `UserError` for a text with lone surrogates, which UTF-8 cannot encode.
        """
        return self._processor.encode(require_utf8(text))

    def encode_continued(self, text: str) -> list[int]:
        """Returns the ids of a text that directly follows text or a control token: no dummy prefix."""
        return self._continued.encode(require_utf8(text))

    def encode_unprefixed(self, text: str) -> list[int]:
        """Returns the ids of a text on its own, with the dummy prefix then removed from the first piece.

        The pieces differ from those of `encode_continued`, because the prefix is removed after merging.
        A text that begins with a space keeps its prefix. If the vocabulary lacks the rest of the first
        piece (4.31 writes the unknown token), the result is that of `encode_continued`.
        """
        ids = self._processor.encode(require_utf8(text))
        if not ids or text.startswith((" ", SPACE)):
            return ids
        first = self._processor.id_to_piece(ids[0])
        if first == SPACE:
            return ids[1:]
        rest = self._processor.piece_to_id(first.removeprefix(SPACE))
        if rest == self._processor.unk_id():
            return self.encode_continued(text)
        return [rest, *ids[1:]]

    def offsets(self, text: str, ids: Sequence[int]) -> Offsets:
        """Returns the characters of a text from which each of its ids is made. `ids` are those of the text in one of
        the three ways to encode it."""
        processors = (self._continued, self._processor)
        return offsets_of(
            ids, (read_pieces(each.encode(text, out_type="serialized_proto"), text) for each in processors)
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of these ids. Skips ids without text: control tokens, the unknown token, and
        ids that the model's vocabulary has but the tokenizer does not."""
        return self._processor.decode([int(i) for i in ids if int(i) in self._spelling])

    def control(self, spelling: str) -> int | None:
        """Returns the id of a control token; None if there is no such token."""
        for token, word in self.added:
            if word == spelling:
                return token
        at = self._processor.piece_to_id(spelling)
        return at if self._processor.is_control(at) and self._processor.id_to_piece(at) == spelling else None

    def spelling(self, token: int) -> str:
        """Returns the spelling of a token in the vocabulary."""
        if token < self.pieces:
            return self._processor.id_to_piece(token)
        return dict(self.added).get(token, "")

    def files(self) -> dict[str, bytes]:
        """Returns the files, by name, from which a folder can be opened again."""
        words = json.dumps({word: token for token, word in self.added}).encode()
        return {TOKENIZER_MODEL: self.model} | ({ADDED_TOKENS: words} if self.added else {})

    def vocabulary(self) -> dict[int, str]:
        """Returns the spelling of each piece of the model."""
        return {token: self._processor.id_to_piece(token) for token in range(self.pieces)}

    @property
    def bos(self) -> int:
        """Returns the id of the token that begins a sequence."""
        return self._processor.bos_id()

    @property
    def eos(self) -> int:
        """Returns the id of the token that ends an answer."""
        return self._processor.eos_id()

    @property
    def size(self) -> int:
        """Returns the bound of the ids: all are below it, added tokens included."""
        return max([self.pieces, *(token + 1 for token, _ in self.added)])

    @property
    def text_size(self) -> int:
        """Returns the bound of the ids of text."""
        return self.pieces

    @property
    def pieces(self) -> int:
        """Returns the number of pieces in the model."""
        return self._processor.get_piece_size()

    @cached_property
    def _processor(self) -> SentencePieceProcessor:
        return _loaded(self.model)

    @cached_property
    def _continued(self) -> SentencePieceProcessor:
        return _loaded(self.model + _CONTINUED)

    @cached_property
    def _spelling(self) -> frozenset[int]:
        sp = self._processor
        without_text = (sp.is_control, sp.is_unknown, sp.is_unused)
        return frozenset(i for i in range(sp.get_piece_size()) if not any(f(i) for f in without_text))

    def __getstate__(self) -> dict[str, object]:
        return {"model": self.model, "added": self.added}


def _loaded(model: bytes) -> SentencePieceProcessor:
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    return processor


def read_tokenizer_file(path: Path) -> bytes:
    """Returns the bytes of a tokenizer file. Raises `UserError` if it is missing, too large or no file."""
    most = _MAX_BYTES >> 20
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or not 0 < found.st_size <= _MAX_BYTES:
            got = f"{found.st_size} bytes, or no regular file"
            raise UserError(TOKENIZER_FILE.at(str(path), got=got, most=most))
        return path.read_bytes()
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise UserError(TOKENIZER_FILE.at(str(path), got=got, most=most)) from error


def require_utf8(text: str) -> str:
    """Returns `text`. Raises `UserError` if UTF-8 cannot encode it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"a lone surrogate {text[error.start]!a}"
        raise UserError(SURROGATE.at(f"text at character {error.start}", got=got)) from error
    return text
