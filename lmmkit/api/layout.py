"""A layout: the ordered spans of one view, and the edits that token strategies make to it.

A span has no placeholder id. An image span has its image and its number of rows; a learned span has
its `token_name`. Row numbers are assigned only when a batch is packed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lmmkit.api.sample import Image

Kind = Literal["text", "image", "learned"]
SpanRole = Literal["bos", "system", "user", "header", "response", "none"]
InsertAt = Literal["start", "end", "before_response"]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Describes `n` consecutive rows of one kind.

    `supervised`: the rows are targets of next-token prediction. `ids` is for text, `image` for an image,
    `token_name` and `owner` (a plugin instance) for learned tokens. `turn` counts the answers from the end:
    -1 for rows of the last answer, 0 for rows of none.
    """

    kind: Kind
    n: int
    role: SpanRole = "none"
    supervised: bool = False
    ids: tuple[int, ...] = ()
    image: Image | None = None
    token_name: str | None = None
    owner: str | None = None
    turn: int = field(default=0, compare=False)  # the same rows may have another answer after them


Layout = tuple[Span, ...]


@dataclass(frozen=True)
class Insert:
    """Describes the edit of a token strategy: `n` learned tokens at `at`, selectable by `token_name`.

    `start` is after the BOS token, `end` after everything, `before_response` directly before the first
    response of the view.
    """

    at: InsertAt
    token_name: str
    n: int = 1


def text(ids: Sequence[int], role: SpanRole, *, supervised: bool = False, turn: int = 0) -> Span:
    """Returns a text span with these token ids."""
    return Span(kind="text", n=len(ids), ids=tuple(ids), role=role, supervised=supervised, turn=turn)


def row_count(layout: Iterable[Span]) -> int:
    """Returns the number of rows of a layout."""
    return sum(span.n for span in layout)


def insert_tokens(layout: Layout, edits: Iterable[tuple[str, Insert]]) -> Layout:
    """Returns the layout with each (owner, insert) applied; equal `at` keep the order of `edits`."""
    out = list(layout)
    for owner, edit in edits:
        span = Span(kind="learned", n=edit.n, token_name=edit.token_name, owner=owner)
        out.insert(_index(out, edit.at), span)
    return tuple(out)


def _index(spans: Sequence[Span], at: InsertAt) -> int:
    if at == "end":
        return len(spans)
    if at == "before_response":
        first = (i for i, span in enumerate(spans) if span.role == "response")
        return next(first, len(spans))
    after_bos = (i + 1 for i, span in enumerate(spans) if span.role == "bos")
    i = next(after_bos, 0)
    while i < len(spans) and spans[i].kind == "learned":  # keep the edits' order
        i += 1
    return i


def truncate(layout: Layout, limit: int) -> Layout:
    """Returns the first `limit` rows. Learned spans are never cut; the other spans are cut to make space.

    An image span that does not fit completely is removed, and so is everything after it except learned
    spans.
    """
    room = limit - sum(span.n for span in layout if span.kind == "learned")
    out: list[Span] = []
    for span in layout:
        if span.kind == "learned":
            out.append(span)
        elif span.n <= room:
            out.append(span)
            room -= span.n
        else:
            if span.kind == "text" and room > 0:
                out.append(replace(span, n=room, ids=span.ids[:room]))
            room = 0
    return tuple(out)
