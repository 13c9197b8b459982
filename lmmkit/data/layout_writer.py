"""Collects the spans of a sample, and encodes each text by what it follows.

LLaVA joins a conversation into one string and tokenizes that string. Here each span is encoded
separately. The ids are equal because no piece extends from a non-space into a following space, and
spans are split only there: spaces at the end of a text are encoded with the text that follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lmmkit.api.layout import CharWeight, Layout, Span, SpanRole, text
from lmmkit.api.sample import Image, Turn
from lmmkit.data.fits.rows import RowsOf
from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import SPACE

WeightsOf = Callable[[str], Sequence[CharWeight]]
"""Returns the weights of characters of an answer. The end of the answer is one character more."""


@dataclass(kw_only=True)
class LayoutWriter:
    """Collects spans and remembers what the next text follows.

    `after`: what the next text follows: nothing (the start, an image), text, or an end token.
    `spaces`: trailing spaces of the last text, which are encoded with the next text. `last`: the role
    of the last text, and whether it is supervised. `answers`: the answers so far; the spans of each have its
    number as `turn` until `close` counts them from the end. `weights_of` gives the weights of answers, and
    `weighted` has those of the characters that are not yet encoded, of which the first of `spaces` is number 0.
    """

    tokenizer: TextTokenizer
    rows_of: RowsOf
    after_eos: str
    spans: list[Span] = field(default_factory=list)
    after: Literal["nothing", "text", "eos"] = "nothing"
    spaces: str = ""
    last: tuple[SpanRole, bool] = ("none", False)
    answers: int = 0
    weights_of: WeightsOf | None = None
    weighted: list[CharWeight] = field(default_factory=list)

    def answer(self, turn: Turn, before: str = "") -> None:
        """Adds `before` and the text of an answer."""
        self.weighted = []
        if self.weights_of is not None and turn.supervised:
            self.weighted = [each for each in self.weights_of(turn.text) if each.begin < each.end]
            self._move_weights(len(self.spaces) + len(before))
        self.write(before + turn.text, "response", supervised=turn.supervised)

    def write(self, words: str, role: SpanRole, *, supervised: bool = False) -> None:
        """Adds text of one role. Its trailing spaces are kept for the next text."""
        self.answers += role == "response" and self.last[0] != "response"
        if role != "response":
            self.weighted = []
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
        weights = self._weights([(0, 1)], " ") if self.weighted else ()
        self._add([token], role, supervised, weights)
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
        weights = self._weights(self.tokenizer.offsets(words, ids), words) if self.weighted else ()
        self._add(ids, role, supervised, weights)

    def _weights(self, offsets: Sequence[tuple[int, int]], words: str) -> list[float]:
        """Returns the weights of the ids of `words`, and leaves those of what follows.

        An id has the weight of each range with one of its characters, leading spaces aside. Without characters
        of its own it counts as the next one.
        """
        found = []
        for begin, end in offsets:
            own = words[begin:end]
            first = end - len(own.lstrip()) if own.strip() else begin
            last = max(end, begin + 1)
            found.append(math.prod(w for b, e, w in self.weighted if b < last and first < e))
        self._move_weights(-len(words))
        return found

    def _move_weights(self, by: int) -> None:
        self.weighted = [CharWeight(b + by, e + by, w) for b, e, w in self.weighted if e + by > 0]

    def _add(
        self, ids: Sequence[int], role: SpanRole, supervised: bool, weights: Sequence[float] = ()
    ) -> None:
        turn, last = self.answers if role == "response" else 0, self.spans[-1] if self.spans else None
        if last is not None and (last.kind, last.role, last.supervised, last.turn) == (
            "text", role, supervised, turn,
        ):  # fmt: skip
            before = self.spans.pop()
            if before.weights or weights:
                weights = [*(before.weights or [1.0] * before.n), *(weights or [1.0] * len(ids))]
            ids = [*before.ids, *ids]
        self.spans.append(text(ids, role, supervised=supervised, turn=turn, weights=weights))
