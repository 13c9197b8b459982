"""The text of token ids: nothing is lost, and what does not show is written out."""

from __future__ import annotations

import pytest

from lmmkit.api.sample import Sample, Turn
from lmmkit.data.chat_templates import VICUNA_SYSTEM, lay_out
from lmmkit.data.fits.rows import FixedRows
from lmmkit.data.text_tokenizers.choose import open_tokenizer
from lmmkit.report.span_text import SpanText, TextPart, visible


@pytest.fixture(scope="module")
def tokenizer(scenes):
    return open_tokenizer(scenes / "tokenizer.model")


def plain(parts) -> str:
    """Returns the text that parts show."""
    return "".join("\n" if part.kind == "newline" else part.text for part in parts)


def test_the_spans_of_a_conversation_are_its_text(tokenizer):
    """Compares with the conversation as LLaVA writes it."""
    turns = [Turn("user", "Where is\nthe red  square?"), Turn("assistant", "top left")]
    turns += [Turn("user", "How many?"), Turn("assistant", "two")]
    layout = lay_out(Sample(key="x", turns=tuple(turns)), tokenizer, rows_of=FixedRows(1))
    text = SpanText(tokenizer)
    expected = f"<s> {VICUNA_SYSTEM} USER: Where is\nthe red  square? ASSISTANT: top left</s>USER: How many? ASSISTANT: two</s>"
    assert "".join(plain(text.parts(span.ids)) for span in layout) == expected
    assert [part for span in layout for part in text.parts(span.ids) if part.kind == "token"] == [
        TextPart("token", "<s>"), TextPart("token", "</s>"), TextPart("token", "</s>"),
    ]  # fmt: skip


def test_control_tokens_differ_from_their_spelling_in_a_text(tokenizer):
    text = SpanText(tokenizer)
    assert text.parts(tokenizer.encode_continued("</s>")) == [TextPart("text", "</s>")]
    assert text.parts([tokenizer.eos]) == [TextPart("token", "</s>")]


def test_ids_without_text_are_not_passed_over(tokenizer):
    text = SpanText(tokenizer)
    unknown = next(i for i in range(tokenizer.size) if tokenizer.spelling(i) == "<unk>")
    ids = [*tokenizer.encode_continued("red"), unknown, *tokenizer.encode_continued(" top")]
    assert text.parts(ids) == [TextPart("text", "red"), TextPart("token", "<unk>"), TextPart("text", " top")]
    assert text.parts([]) == []


def test_what_does_not_show_is_written_out():
    kinds = list(visible("a\u202eb\n\u00a0\tc \U0001f468\u200d\U0001f469"))
    assert kinds == [
        TextPart("text", "a"), TextPart("char", "U+202E"), TextPart("text", "b"), TextPart("newline", ""),
        TextPart("char", "U+00A0"), TextPart("char", "U+0009"), TextPart("text", "c \U0001f468\u200d\U0001f469"),
    ]  # fmt: skip
