"""Streamed text: joined, the parts are the answer, and no part has half a character."""

from __future__ import annotations

import io

import numpy as np
import pytest
import sentencepiece
import tokenizers

from lmmkit.data.text_tokenizers.hf_tokenizer import HFTokenizer
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lmmkit.inference.text_stream import TextStream

WORDS = [
    "the red ball is left of the blue box",
    "how many objects are there",
    "two",
    "a small green cube",
] * 20
TEXTS = [
    "the red ball", "  spaces before and after \n", "日本語のテキスト", "红色的球在左边。", "été à Zürich", "👩‍👩‍👧 and 🇩🇪",
    "a\n\nb", "", " ", "mixed 中文 and the box",
]  # fmt: skip


def sentencepiece_with_bytes():
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS), model_writer=out, vocab_size=300, byte_fallback=True, model_type="bpe",
        hard_vocab_limit=False, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    return SentencePieceTokenizer(model=out.getvalue())


def byte_level():
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[])
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(["<s>"])
    return HFTokenizer(text=inner.to_str(), bos=None, eos=256)


def llama_like():
    """Has a decoder that replaces a whole run of bytes if one of them is wrong."""
    letters = sorted({c for text in WORDS for c in text.replace(" ", "\u2581")} | {"\u2581"})
    vocab = {f"<0x{i:02X}>": i for i in range(256)} | {c: 256 + i for i, c in enumerate(letters)}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    inner.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")]
    )
    steps = tokenizers.decoders
    inner.decoder = steps.Sequence(
        [steps.Replace("\u2581", " "), steps.ByteFallback(), steps.Fuse(), steps.Strip(" ", 1, 0)]
    )
    return HFTokenizer(text=inner.to_str(), bos=None, eos=0)


TOKENIZERS = {"sentencepiece": sentencepiece_with_bytes, "bytes": byte_level, "llama": llama_like}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def streamed(tokenizer, ids):
    parts = []
    stream = TextStream(tokenizer, parts.append)
    for token in ids:
        stream.add(token)
    return parts, stream.close()


@pytest.mark.parametrize("text", TEXTS)
def test_the_parts_of_a_text_are_the_text(tokenizer, text):
    for ids in (tokenizer.encode(text), tokenizer.encode_continued(text)):
        parts, answer = streamed(tokenizer, ids)
        assert "".join(parts) == answer == tokenizer.decode(ids).strip() == text.strip()
        assert not any("\ufffd" in part for part in parts)


def test_the_parts_of_any_tokens_are_the_answer(tokenizer):
    """Also of incomplete characters, and of ids that the tokenizer does not have."""
    rng = np.random.default_rng(0)
    many = [i for text in TEXTS for i in tokenizer.encode(text)]
    for _ in range(300):
        ids = [int(rng.choice(many)) if rng.random() < 0.7 else int(rng.integers(300)) for _ in range(12)]
        parts, answer = streamed(tokenizer, [*ids, tokenizer.size + 7])
        assert "".join(parts) == answer == tokenizer.decode(ids).strip(), ids


def test_words_arrive_one_by_one(tokenizer):
    parts, _ = streamed(tokenizer, tokenizer.encode("the red ball"))
    assert len(parts) >= 3
