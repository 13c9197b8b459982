"""Cuts a generated text into parts while its tokens arrive: joined, the parts are the answer."""

from __future__ import annotations

import re
from collections.abc import Callable

from lmmkit.data.text_tokenizers.choose import TextTokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # the spelling of a token that is one byte of a character
_UNDECODED = "\ufffd"


class TextStream:
    """Calls `on_text` with each new part of an answer.

    A part is given out only when later tokens cannot change it. So an incomplete character waits for its other
    bytes, and white space for the text after it, because an answer is trimmed.
    """

    def __init__(self, tokenizer: TextTokenizer, on_text: Callable[[str], None]):
        self._tokenizer, self._on_text = tokenizer, on_text
        self._ids: list[int] = []
        self._given = ""

    def add(self, token: int) -> None:
        """Adds one token of the answer."""
        spelling = self._tokenizer.spelling(token) if token < self._tokenizer.size else None
        if spelling is None or self._tokenizer.control(spelling) is not None:
            return  # has no text; a model may have more embeddings than its tokenizer has tokens
        self._ids.append(token)
        if not _BYTE.fullmatch(
            spelling
        ):  # after a byte, the next one may change how the last ones are decoded
            self._give(self._tokenizer.decode(self._ids).rstrip(_UNDECODED).strip())

    def close(self) -> str:
        """Gives out the rest, and returns the complete answer."""
        answer = self._tokenizer.decode(self._ids).strip()
        self._give(answer)
        return answer

    def _give(self, text: str) -> None:
        if len(text) > len(self._given) and text.startswith(self._given):
            self._on_text(text[len(self._given) :])
            self._given = text
