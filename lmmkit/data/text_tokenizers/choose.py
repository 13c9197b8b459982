"""Opens tokenizers of all kinds, and describes their common interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

from lmmkit.data.text_tokenizers.added_tokens import merged_vocabulary, read_added_tokens, read_vocabularies
from lmmkit.data.text_tokenizers.hf_tokenizer import TOKENIZER_JSON, HFTokenizer
from lmmkit.data.text_tokenizers.offsets import Offsets
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import TOKENIZER_MODEL, SentencePieceTokenizer
from lmmkit.data.text_tokenizers.tiktoken_tokenizer import open_tiktoken
from lmmkit.errors import UserError, did_you_mean
from lmmkit.errors.data import TOKENIZER_DISAGREE, TOKENIZER_KIND


class TextTokenizer(Protocol):
    """Describes what layouts and the decoding of answers need; see `SentencePieceTokenizer`."""

    @property
    def bos(self) -> int | None:
        """Returns the id that begins a sequence; None if there is none."""
        ...

    @property
    def eos(self) -> int:
        """Returns the id that ends an answer."""
        ...

    @property
    def size(self) -> int:
        """Returns the bound of the ids: all are below it."""
        ...

    @property
    def text_size(self) -> int:
        """Returns the bound of the ids of text; control tokens may be above it."""
        ...

    def encode(self, text: str) -> list[int]: ...
    def encode_continued(self, text: str) -> list[int]: ...
    def encode_unprefixed(self, text: str) -> list[int]: ...
    def offsets(self, text: str, ids: Sequence[int]) -> Offsets: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def control(self, spelling: str) -> int | None: ...
    def spelling(self, token: int) -> str: ...
    def files(self) -> dict[str, bytes]: ...


class TokenizerKind(NamedTuple):
    """Holds the pattern of a kind's file name, and the function that opens such a file."""

    pattern: str
    open: Callable[[Path], TextTokenizer]


# In the order in which `auto` prefers them: LLaMA's weights were trained on the ids from `tokenizer.model`.
TOKENIZER_KINDS = {
    "sentencepiece": TokenizerKind(TOKENIZER_MODEL, SentencePieceTokenizer.open),
    "tokenizers": TokenizerKind(TOKENIZER_JSON, HFTokenizer.open),
    "tiktoken": TokenizerKind("*.tiktoken", open_tiktoken),
}


def open_tokenizer(path: Path, kind: str = "auto") -> TextTokenizer:
    """Returns the tokenizer in a folder, or in a file.

    `auto` takes the first kind that has a file there, and compares all files of a folder: the result has every
    token that one of them names. A named kind reads its file alone.

    Raises `UserError` for a file that is missing or damaged, for an unknown kind, and for files that disagree.
    """
    known = ("auto", *TOKENIZER_KINDS)
    if kind not in known:
        got, nearest = f"kind `{kind}`", did_you_mean(kind, known)
        raise UserError(TOKENIZER_KIND.at(str(path), got=got, known=", ".join(known), nearest=nearest))
    if kind == "auto" and path.is_dir() and (compared := _compared(path)) is not None:
        return compared
    if kind == "auto":
        fitting = (name for name, its in TOKENIZER_KINDS.items() if _fits(path, its.pattern))
        kind = next(fitting, "sentencepiece")
    pattern, open_file = TOKENIZER_KINDS[kind]
    if path.is_dir():
        path = next(iter(sorted(path.glob(pattern))), path / pattern)
    return open_file(path)


def _compared(folder: Path) -> TextTokenizer | None:
    """Returns the tokenizer with the tokens of all files in a folder; None if no two files name tokens."""
    model, file = folder / TOKENIZER_MODEL, folder / TOKENIZER_JSON
    files = read_added_tokens(folder)
    own = read_vocabularies(file) if file.is_file() else None
    if not (model.is_file() or own) or not (files or (model.is_file() and own)):
        return None
    vocabulary, added = own or ({}, {})
    pieces = SentencePieceTokenizer.open(model) if model.is_file() else None
    known = {TOKENIZER_MODEL: pieces.vocabulary()} if pieces else {}
    known |= {TOKENIZER_JSON: {**vocabulary, **added}} if own else {}
    whole = merged_vocabulary(folder, known | files)
    if pieces and all(token < pieces.pieces or token in added for token in vocabulary):
        more = {token: word for token, word in whole.items() if token >= pieces.pieces}
        return replace(pieces, added=tuple(sorted(more.items())))
    tokenizer = HFTokenizer.open(file)
    more = {token: word for token, word in whole.items() if token not in known[TOKENIZER_JSON]}
    if below := [word for token, word in more.items() if token < tokenizer.size]:
        got = (
            f"{TOKENIZER_JSON}, which has most tokens, lacks {len(below)} of the others, such as {below[0]!r}"
        )
        raise UserError(TOKENIZER_DISAGREE.at(str(folder), got=got))
    return tokenizer.with_added(more) if more else tokenizer


def _fits(path: Path, pattern: str) -> bool:
    """Returns whether a folder has a file of this pattern, or a file has its suffix."""
    if path.is_dir():
        return any(file.is_file() for file in path.glob(pattern))
    return path.suffix == Path(pattern).suffix
