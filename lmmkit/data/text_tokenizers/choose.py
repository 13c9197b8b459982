"""Tokenizers of every kind behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lmmkit.data.text_tokenizers import hf_tokenizer, sentencepiece_tokenizer
from lmmkit.data.text_tokenizers.hf_tokenizer import HFTokenizer
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lmmkit.data.text_tokenizers.tiktoken_tokenizer import open_tiktoken
from lmmkit.errors import UserError, did_you_mean
from lmmkit.errors.data import KIND

KINDS = ("auto", "sentencepiece", "tokenizers", "tiktoken")


class TextTokenizer(Protocol):
    """What a layout and a decoder of answers need; see `text.Tokenizer`."""

    @property
    def bos(self) -> int | None:
        """Begins a sequence; None where nothing does."""
        ...

    @property
    def eos(self) -> int:
        """Ends an answer."""
        ...

    @property
    def size(self) -> int:
        """Ids are below it."""
        ...

    def encode(self, text: str) -> list[int]: ...
    def encode_continued(self, text: str) -> list[int]: ...
    def encode_unprefixed(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def control(self, spelling: str) -> int | None: ...
    def spelling(self, token: int) -> str: ...
    def files(self) -> dict[str, bytes]: ...


def open_tokenizer(path: Path, kind: str = "auto") -> TextTokenizer:
    """The tokenizer in a folder, or in a file.

    `auto` takes `tokenizer.model` before `tokenizer.json` before a `.tiktoken` file: what LLaMA's
    own tokenizer says of a text is what its weights were trained on.

    Raises `UserError` for a file that is missing, damaged or of an unknown kind.
    """
    if kind not in KINDS:
        nearest = did_you_mean(kind, KINDS)
        raise UserError(KIND.at(str(path), got=f"kind `{kind}`", known=", ".join(KINDS), nearest=nearest))
    if path.is_dir():
        known = {sentencepiece_tokenizer.FILE: "sentencepiece", hf_tokenizer.FILE: "tokenizers"}
        known |= {file.name: "tiktoken" for file in sorted(path.glob("*.tiktoken"))}
        found = [
            name for name, its in known.items() if its == kind or (kind == "auto" and (path / name).is_file())
        ]
        path = path / (found or [sentencepiece_tokenizer.FILE])[0]
        kind = known[path.name]
    elif kind == "auto":
        kind = {".json": "tokenizers", ".tiktoken": "tiktoken"}.get(path.suffix, "sentencepiece")
    if kind == "tokenizers":
        return HFTokenizer.open(path)
    return open_tiktoken(path) if kind == "tiktoken" else SentencePieceTokenizer.open(path)
