"""Opens tokenizers of all kinds, and describes their common interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from lmmkit.data.text_tokenizers.hf_tokenizer import TOKENIZER_JSON, HFTokenizer
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import TOKENIZER_MODEL, SentencePieceTokenizer
from lmmkit.data.text_tokenizers.tiktoken_tokenizer import open_tiktoken
from lmmkit.errors import UserError, did_you_mean
from lmmkit.errors.data import TOKENIZER_KIND


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

    def encode(self, text: str) -> list[int]: ...
    def encode_continued(self, text: str) -> list[int]: ...
    def encode_unprefixed(self, text: str) -> list[int]: ...
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
    """Returns the tokenizer in a folder, or in a file. `auto` takes the first kind that has a file there.

    Raises `UserError` for a file that is missing or damaged, and for an unknown kind.
    """
    known = ("auto", *TOKENIZER_KINDS)
    if kind not in known:
        got, nearest = f"kind `{kind}`", did_you_mean(kind, known)
        raise UserError(TOKENIZER_KIND.at(str(path), got=got, known=", ".join(known), nearest=nearest))
    if kind == "auto":
        fitting = (name for name, its in TOKENIZER_KINDS.items() if _fits(path, its.pattern))
        kind = next(fitting, "sentencepiece")
    pattern, open_file = TOKENIZER_KINDS[kind]
    if path.is_dir():
        path = next(iter(sorted(path.glob(pattern))), path / pattern)
    return open_file(path)


def _fits(path: Path, pattern: str) -> bool:
    """Returns whether a folder has a file of this pattern, or a file has its suffix."""
    if path.is_dir():
        return any(file.is_file() for file in path.glob(pattern))
    return path.suffix == Path(pattern).suffix
