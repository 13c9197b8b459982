"""A layout: the ordered spans of one view, and the edits that token strategies make to it.

A span has no placeholder id. An image span has its image and its number of rows; a learned span has
its `token_name`. Row numbers are assigned only when a batch is packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from lmmkit.api.sample import Image

Kind = Literal["text", "image", "learned"]
SpanRole = Literal["bos", "system", "user", "header", "response", "none"]
InsertAt = Literal[
    "start", "before_image", "after_image", "before_response", "after_response", "after_token", "end"
]
ANCHORED: tuple[InsertAt, ...] = ("before_image", "after_image", "after_response", "after_token")


@dataclass(frozen=True, kw_only=True)
class Span:
    """Describes `n` consecutive rows of one kind.

    `supervised`: the rows are targets of next-token prediction. `ids` is for text, `image` for an image,
    `token_name`, `owner` (a plugin instance) and `at` (the place of its insert) for learned tokens. `turn`
    counts the answers from the end: -1 for rows of the last answer, 0 for rows of none. `weights` has the weight of
    each id in the next-token loss; empty: all are 1.
    """

    kind: Kind
    n: int
    role: SpanRole = "none"
    supervised: bool = False
    ids: tuple[int, ...] = ()
    image: Image | None = None
    token_name: str | None = None
    owner: str | None = None
    at: InsertAt | None = None
    turn: int = field(default=0, compare=False)  # the same rows may have another answer after them
    weights: tuple[float, ...] = field(default=(), compare=False)


Layout = tuple[Span, ...]


@dataclass(frozen=True)
class Insert:
    """Describes the edit of a token strategy: `n` learned tokens at `at`, selectable by `token_name`.

    `start` is after the BOS token, `end` after everything, `before_response` directly before the first
    response of the view. `before_image` and `after_image` are at every image, `after_response` is after every
    response. `after_token` is after each occurrence of one token of the vocabulary, also in responses: `token`
    is its text as it continues a text (" red"), or the spelling of a control token.
    """

    at: InsertAt
    token_name: str
    n: int = 1
    token: str | None = None


TokenId = Callable[[str], int]
"""Returns the id of the vocabulary token that an `Insert` names."""


class CharWeight(NamedTuple):
    """Holds the weight of the characters `begin` to `end - 1` of a text."""

    begin: int
    end: int
    weight: float


def text(
    ids: Sequence[int],
    role: SpanRole,
    *,
    supervised: bool = False,
    turn: int = 0,
    weights: Sequence[float] = (),
) -> Span:
    """Returns a text span with these token ids."""
    n, ids, weights = len(ids), tuple(ids), tuple(weights)
    return Span(kind="text", n=n, ids=ids, role=role, supervised=supervised, turn=turn, weights=weights)


def _cut(span: Span, begin: int, end: int) -> Span:
    """Returns some rows of a text span."""
    return replace(span, n=end - begin, ids=span.ids[begin:end], weights=span.weights[begin:end])


def row_count(layout: Iterable[Span]) -> int:
    """Returns the number of rows of a layout."""
    return sum(span.n for span in layout)


def insert_tokens(layout: Layout, edits: Iterable[tuple[str, Insert]], token_id: TokenId) -> Layout:
    """Returns the layout with each (owner, insert) applied. All places are places of `layout`, so no edit moves
    another; at one place the order is that of `edits`."""
    inserted: dict[tuple[int, int], list[Span]] = {}
    for owner, edit in edits:
        span = Span(kind="learned", n=edit.n, token_name=edit.token_name, owner=owner, at=edit.at)
        for gap in _gaps(layout, edit, token_id):
            inserted.setdefault(gap, []).append(span)
    out: list[Span] = []
    for i, span in enumerate(layout):
        out += inserted.get((i, 0), [])
        cuts = sorted(row for number, row in inserted if number == i and row)
        for begin, end in zip([0, *cuts], [*cuts, span.n], strict=True):
            whole = (begin, end) == (0, span.n)
            out.append(span if whole else _cut(span, begin, end))
            out += inserted[i, end] if end in cuts else []
    return (*out, *inserted.get((len(layout), 0), []))


def _gaps(layout: Layout, edit: Insert, token_id: TokenId) -> Iterator[tuple[int, int]]:
    """Yields each place of an insert as (span, rows of this span before it); the end is (number of spans, 0)."""
    spans = range(len(layout))
    responses = [i for i in spans if layout[i].role == "response"]
    images = [i for i in spans if layout[i].kind == "image"]
    match edit.at:
        case "start":
            yield next((i + 1 for i in spans if layout[i].role == "bos"), 0), 0
        case "end":
            yield len(layout), 0
        case "before_response":
            yield next(iter(responses), len(layout)), 0
        case "after_response":
            yield from ((i + 1, 0) for i in responses if i + 1 not in responses)
        case "before_image":
            yield from ((i, 0) for i in images)
        case "after_image":
            yield from ((i + 1, 0) for i in images)
        case "after_token":
            assert edit.token is not None, "the plan has checked it"
            wanted = token_id(edit.token)
            for i in spans:
                rows = (row + 1 for row, id_ in enumerate(layout[i].ids) if id_ == wanted)
                yield from ((i, row) if row < layout[i].n else (i + 1, 0) for row in rows)


def truncate(layout: Layout, limit: int) -> Layout:
    """Returns the first `limit` rows.

    Learned spans at `start`, `before_response` and `end` are never cut; the other spans are cut to make space.
    A learned span at another place, and an image, are kept completely or not at all. What does not fit is
    removed, and so is everything after it except learned spans that are never cut.
    """
    room = limit - sum(span.n for span in layout if _fixed(span))
    out: list[Span] = []
    for span in layout:
        if _fixed(span):
            out.append(span)
        elif span.n <= room:
            out.append(span)
            room -= span.n
        else:
            if span.kind == "text" and room > 0:
                out.append(_cut(span, 0, room))
            room = 0
    return tuple(out)


def _fixed(span: Span) -> bool:
    return span.kind == "learned" and span.at not in ANCHORED
