"""Weights of characters of answers, mapped to their tokens in every template."""

from __future__ import annotations

import math

import pytest

from lmmkit.api.layout import CharWeight, Insert, insert_tokens, row_count, truncate
from lmmkit.api.sample import Turn
from lmmkit.data.chat_templates import lay_out
from lmmkit.data.fits.rows import FixedRows
from lmmkit.data.text_tokenizers.choose import open_tokenizer
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from tests.data.test_chat_templates import sample
from tests.data.text_tokenizers.test_hf_tokenizer import llama3, qwen  # noqa: F401
from tests.support.fake_llama_tokenizer import llama_like

PIECES = SentencePieceTokenizer(model=llama_like())
ANSWERS = ("a cat on the mat", "the cat  is 5 ", "日本 x", "")
WEIGHTS = {  # by answer
    ANSWERS[0]: [CharWeight(2, 5, 3.0), CharWeight(0, 9, 0.5)],  # "cat", and up to a part of "the"
    ANSWERS[1]: [CharWeight(0, 15, 2.0)],  # all, with the end
    ANSWERS[2]: [CharWeight(1, 2, 0.0)],
    ANSWERS[3]: [CharWeight(0, 1, 4.0)],
}


def talked(template: str, *, supervised: tuple[bool, ...] = (True,) * 4):
    turns = []
    for answer, learned in zip(ANSWERS, supervised, strict=True):
        turns += [Turn("user", "is it", 0 if turns else 1), Turn("assistant", answer, supervised=learned)]
    return sample(*turns, template=template)


def laid_out(tokenizer, template, weights_of=WEIGHTS.get, **settings):
    return lay_out(talked(template, **settings), tokenizer, rows_of=FixedRows(4), weights_of=weights_of)


def weights_by_twin(tokenizer, ids, answer: str, begin: int) -> list[float]:
    """Walks over the characters of an answer, which begin at `begin` of the text of its ids, id by id."""
    found, at = [], 0
    for n in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:n])
        own, start = text[at:], at - begin
        start += len(own) - len(own.lstrip()) if own.strip() else 0
        stop, at = len(text) - begin, len(text)
        found.append(math.prod(w for b, e, w in WEIGHTS[answer] if b < max(stop, start + 1) and start < e))
    return found


@pytest.mark.parametrize("template", ["plain", "vicuna_v1", "chatml", "llama3"])
def test_ids_have_the_weights_of_their_characters(template, request):
    names = {"chatml": "qwen", "llama3": "llama3"}
    tokenizer = open_tokenizer(request.getfixturevalue(names[template])) if template in names else PIECES
    layout = laid_out(tokenizer, template)
    assert layout == lay_out(talked(template), tokenizer, rows_of=FixedRows(4))
    spans = [span for span in layout if span.role == "response"]
    assert [bool(span.weights) for span in layout] == [span.supervised for span in layout]
    for span, answer in zip(spans, ANSWERS, strict=True):
        *ids, end = span.ids
        assert len(span.weights) == span.n
        after_end = math.prod(w for _, e, w in WEIGHTS[answer] if e == len(answer) + 1)
        assert span.weights[-1] == after_end
        assert tokenizer.decode([end]).strip() == "", "the last id is the end of the answer"
        if answer and answer.isascii() and "  " not in answer:  # decoding is then one text for each id
            space = template == "vicuna_v1" and tokenizer.decode(list(ids))[:1] == " "
            assert list(span.weights[:-1]) == weights_by_twin(tokenizer, list(ids), answer, int(space))


def test_by_hand():
    first, second, third, fourth = [s for s in laid_out(PIECES, "vicuna_v1") if s.role == "response"]
    pieces = [PIECES.spelling(id_) for id_ in first.ids]
    assert list(zip(pieces, first.weights, strict=True)) == [
        ("▁a", 0.5), ("▁cat", 1.5), ("▁on", 0.5), ("▁the", 1.0), ("▁mat", 1.0), ("</s>", 1.0)
    ]  # fmt: skip
    assert set(second.weights) == {2.0} and second.n == len(second.weights)
    bytes_of = [PIECES.spelling(id_) for id_ in third.ids]
    assert [w for piece, w in zip(bytes_of, third.weights, strict=True)] == [1.0] * 4 + [0.0] * 3 + [1.0] * 3
    assert bytes_of[1:7] == ["<0xE6>", "<0x97>", "<0xA5>", "<0xE6>", "<0x9C>", "<0xAC>"]
    assert fourth.weights[-1] == 4.0


def test_a_token_partly_inside_counts_but_not_for_its_leading_space():
    text = "a cat on the mat"

    def weights(begin: int, end: int) -> list[float]:
        layout = laid_out(
            PIECES, "vicuna_v1", lambda answer: [CharWeight(begin, end, 7.0)] * (answer == text)
        )
        span = next(span for span in layout if span.role == "response")
        return list(span.weights or [1.0] * span.n)

    assert weights(4, 5) == [1, 7, 1, 1, 1, 1]
    assert weights(0, 2) == [7, 1, 1, 1, 1, 1]  # the space before "cat" is not "cat"
    assert weights(1, 3) == [1, 7, 1, 1, 1, 1]
    assert weights(16, 17) == [1, 1, 1, 1, 1, 7]
    assert weights(3, 3) == [1, 1, 1, 1, 1, 1]


def test_answers_that_are_not_learned_are_not_asked():
    asked = []
    layout = laid_out(
        PIECES, "plain", lambda text: asked.append(text) or [], supervised=(True, False, True, False)
    )
    assert asked == [ANSWERS[0], ANSWERS[2]]
    assert not any(span.weights for span in layout)


def test_inserts_and_truncation_cut_weights_with_their_ids():
    layout = laid_out(PIECES, "vicuna_v1")
    cat = PIECES.encode_continued(" cat")[0]
    inserts = [
        ("me", Insert("after_token", "mine", 2, token=" cat")),
        ("me", Insert("before_response", "other")),
    ]
    edited = insert_tokens(layout, inserts, lambda token: cat)
    assert row_count(edited) == row_count(layout) + 2 * 2 + 1
    pairs = [p for s in layout if s.supervised for p in zip(s.ids, s.weights, strict=True)]
    assert [p for s in edited if s.supervised for p in zip(s.ids, s.weights, strict=True)] == pairs
    for limit in range(row_count(edited)):
        kept = [s for s in truncate(edited, limit) if s.supervised]
        found = [p for s in kept for p in zip(s.ids, s.weights, strict=True)]
        assert found == pairs[: len(found)]
