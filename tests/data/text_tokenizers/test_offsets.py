"""The characters of ids, against what the ids of each beginning of a text decode to."""

from __future__ import annotations

import unicodedata

import pytest

from lmmkit.data.text_tokenizers.choose import TextTokenizer, open_tokenizer
from lmmkit.data.text_tokenizers.offsets import offsets_of
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from tests.data.text_tokenizers.test_hf_tokenizer import llama2, llama3, qwen, random_texts  # noqa: F401
from tests.support.fake_llama_tokenizer import llama_like

TEXTS = (
    "",
    " ",
    "  a",
    "a cat",
    " USER: 5 cats",
    "5",
    "on the  mat ",
    "\t é",
    "日本 🙂x",
    "\n\n",
    *random_texts(300),
)


def tokenizer_of(name: str, request) -> TextTokenizer:
    first, _, rest = name.partition("/")
    if first == "stand-in":
        return SentencePieceTokenizer(model=llama_like())
    return open_tokenizer(request.getfixturevalue(first) / rest)


def without_bytes(tokenizer: TextTokenizer, text: str) -> bool:
    """Returns whether no character of a text is written in bytes, or normalised: then each id has its own text."""
    return text.isascii() and all(" " <= c <= "~" for c in text)


@pytest.mark.parametrize("name", ["stand-in", "llama2", "llama2/json", "qwen", "llama3"])
def test_characters_are_those_that_each_id_spells(name, request):
    tokenizer, seen = tokenizer_of(name, request), 0
    for text in TEXTS:
        for encode in (tokenizer.encode, tokenizer.encode_continued, tokenizer.encode_unprefixed):
            ids = encode(text)
            offsets = tokenizer.offsets(text, ids)
            assert len(offsets) == len(ids)
            assert all(0 <= b <= e <= len(text) for b, e in offsets), (text, offsets)
            assert offsets == sorted(offsets), (text, offsets)
            if unicodedata.is_normalized("NFC", text):  # Qwen's joins two characters to one, at the first
                assert {i for b, e in offsets for i in range(b, e)} == set(range(len(text))), (text, offsets)
            if not without_bytes(tokenizer, text):
                continue
            for id_, (begin, end) in zip(ids, offsets, strict=True):
                spelt = tokenizer.spelling(id_).replace("\u2581", " ").replace("\u0120", " ")
                if spelt.startswith("<0x"):  # a character that the vocabulary lacks, written in bytes
                    continue
                assert text[begin:end].strip() == spelt.strip(), (text, offsets)
                seen += bool(spelt.strip())
    assert seen > 1000


def test_a_removed_prefix_moves_nothing():
    plain = ([7, 5, 6], [(0, 0), (0, 1), (1, 3)])
    assert offsets_of([5, 6], [([9], [(0, 3)]), plain]) == [(0, 1), (1, 3)]
    assert offsets_of([8, 5, 6], [plain]) == [(0, 0), (0, 1), (1, 3)]
    assert offsets_of([7, 5, 6], [plain, ([1], [(0, 3)])]) == plain[1]
    with pytest.raises(AssertionError, match="those of the text"):
        offsets_of([5, 9], [plain])
