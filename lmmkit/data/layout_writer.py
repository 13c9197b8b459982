"""Collects the spans of a sample, and encodes each text by what it follows.

LLaVA joins a conversation into one string and tokenizes that string. Here each span is encoded
separately. The ids are equal because no piece extends from a non-space into a following space, and
spans are split only there: spaces at the end of a text are encoded with the text that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lmmkit.api.layout import Layout, Span, SpanRole, text
from lmmkit.api.sample import Image
from lmmkit.data.images import RowsOf
from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import SPACE


@dataclass(kw_only=True)
class LayoutWriter:
    """Collects spans and remembers what the next text follows.

    `after`: what the next text follows: nothing (the start, an image), text, or an end token.
    `spaces`: trailing spaces of the last text, which are encoded with the next text. `last`: the role
    of the last text, and whether it is supervised. `answers`: the answers so far; the spans of each have its
    number as `turn` until `close` counts them from the end.
    """

    tokenizer: TextTokenizer
    rows_of: RowsOf
    after_eos: str
    spans: list[Span] = field(default_factory=list)
    after: Literal["nothing", "text", "eos"] = "nothing"
    spaces: str = ""
    last: tuple[SpanRole, bool] = ("none", False)
    answers: int = 0

    def write(self, words: str, role: SpanRole, *, supervised: bool = False) -> None:
        """Adds text of one role. Its trailing spaces are kept for the next text."""
        self.answers += role == "response" and self.last[0] != "response"
        words = self.spaces + words.replace(SPACE, " ")  # sentencepiece treats both alike
        kept = words.rstrip(" ")
        self.spaces = words[len(kept) :]
        self._encode(kept, role, supervised)
        self.last = (role, supervised)

    def image(self, image: Image) -> None:
        """Adds an image. The text after it is encoded like a text at the start."""
        self._flush()
        self.spans.append(Span(kind="image", n=self.rows_of(image), image=image))
        self.after = "nothing"

    def part(self) -> None:
        """Makes the next text be encoded separately, as if it followed a control token."""
        self._flush()
        self.after = "eos"

    def control(self, token: int, role: SpanRole, *, supervised: bool = False) -> None:
        """Adds a control token, in one span with the preceding text of the same role."""
        self._flush()
        self._add([token], role, supervised)
        self.after = "nothing" if role == "bos" else "eos"

    def close(self) -> Layout:
        """Returns all spans."""
        self._flush()
        return tuple(s if not s.turn else replace(s, turn=s.turn - self.answers - 1) for s in self.spans)

    def _flush(self) -> None:
        spaces, self.spaces = self.spaces, ""
        if spaces:
            self._encode(spaces, *self.last)

    def _encode(self, words: str, role: SpanRole, supervised: bool) -> None:
        if not words:
            return
        if self.after == "text" or (self.after == "eos" and self.after_eos == "hf437"):
            ids = self.tokenizer.encode_continued(words)
        elif self.after == "eos":
            ids = self.tokenizer.encode_unprefixed(words)
        else:
            ids = self.tokenizer.encode(words)
        self.after = "text"
        self._add(ids, role, supervised)

    def _add(self, ids: Sequence[int], role: SpanRole, supervised: bool) -> None:
        turn, last = self.answers if role == "response" else 0, self.spans[-1] if self.spans else None
        if last is not None and (last.kind, last.role, last.supervised, last.turn) == (
            "text", role, supervised, turn,
        ):  # fmt: skip
            ids = [*self.spans.pop().ids, *ids]
        self.spans.append(text(ids, role, supervised=supervised, turn=turn))
