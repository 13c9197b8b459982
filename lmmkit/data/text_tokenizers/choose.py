"""Opens tokenizers of all kinds, and describes their common interface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lmmkit.data.text_tokenizers import hf_tokenizer, sentencepiece_tokenizer
from lmmkit.data.text_tokenizers.hf_tokenizer import HFTokenizer
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lmmkit.data.text_tokenizers.tiktoken_tokenizer import open_tiktoken
from lmmkit.errors import UserError, did_you_mean
from lmmkit.errors.data import TEXT_KIND

KINDS = ("auto", "sentencepiece", "tokenizers", "tiktoken")


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


def open_tokenizer(path: Path, kind: str = "auto") -> TextTokenizer:
    """Returns the tokenizer in a folder, or in a file.

    `auto` prefers `tokenizer.model`, then `tokenizer.json`, then a `.tiktoken` file, because LLaMA's
    weights were trained on the ids from `tokenizer.model`.

    Raises `UserError` for a file that is missing or damaged, and for an unknown kind.
    """
    if kind not in KINDS:
        nearest = did_you_mean(kind, KINDS)
        raise UserError(
            TEXT_KIND.at(str(path), got=f"kind `{kind}`", known=", ".join(KINDS), nearest=nearest)
        )
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
