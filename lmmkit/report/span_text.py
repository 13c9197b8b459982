"""The text of token ids as a page shows it: complete, with all that is no plain text marked as such."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from lmmkit.data.text_tokenizers.choose import TextTokenizer

JOINERS = "\u200c\u200d"  # parts of emoji and of some scripts: invisible, but not alone


class TextPart(NamedTuple):
    """Holds a part of a text. `kind`: "text", "token" for a token without text, such as an end token, "char" for a
    character that does not show, by its number, or "newline"."""

    kind: str
    text: str


@dataclass
class SpanText:
    """Turns the ids of a span into parts."""

    tokenizer: TextTokenizer
    _silent: dict[int, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before = self.tokenizer.encode("a")
        self._skipped = len(self.tokenizer.decode(self._before))

    def parts(self, ids: Sequence[int]) -> list[TextPart]:
        """Returns the parts in their order."""
        found = list[TextPart]()
        for silent, each in groupby(ids, self._has_no_text):
            if silent:
                found += [TextPart("token", self.tokenizer.spelling(token) or f"<{token}>") for token in each]
            else:
                found += visible(self._decoded(list(each)))
        return found

    def _decoded(self, ids: list[int]) -> str:
        """Returns the text of ids as it continues a text: at the beginning, decoding would remove a space."""
        return self.tokenizer.decode([*self._before, *ids])[self._skipped :]

    def _has_no_text(self, token: int) -> bool:
        if token not in self._silent:
            self._silent[token] = not self._decoded([token])
        return self._silent[token]


def visible(text: str) -> Iterator[TextPart]:
    """Yields the parts of a text, with newlines and characters that do not show apart."""
    for kind, chars in groupby(text, _kind):
        if kind == "text":
            yield TextPart(kind, "".join(chars))
        else:
            yield from (TextPart(kind, "" if kind == "newline" else f"U+{ord(char):04X}") for char in chars)


def _kind(char: str) -> str:
    if char == "\n":
        return "newline"
    return "text" if char.isprintable() or char in JOINERS else "char"
