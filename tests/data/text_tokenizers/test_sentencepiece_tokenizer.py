"""The tokenizer: ids, text that only looks like control, files that are none."""

import os
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lmmkit.errors import UserError
from tests.support.fake_llama_tokenizer import SPACE, llama_like, processor, write_llama_like

TOKENIZER = SentencePieceTokenizer(model=llama_like())
CONTROL = ("<s>", "</s>", "<unk>", "<image>", "<0x0A>")
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def code(error: pytest.ExceptionInfo[UserError]) -> str:
    return error.value.problems[0].code


def test_open_encode_decode(tmp_path):
    path = write_llama_like(tmp_path)
    tokenizer = SentencePieceTokenizer.open(path)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.size) == (1, 2, 32_000)
    assert tokenizer.encode("a cat on a mat\n") == [263, 6635, 373, 263, 1775, 13]
    assert tokenizer.decode([1, 263, 6635, 2, 0, 32_005]) == "a cat"
    assert tokenizer.encode("") == tokenizer.encode_continued("") == []


def test_three_ways_to_begin():
    assert TOKENIZER.encode("USER:") == [3148, 1001, 29901]
    assert TOKENIZER.encode_unprefixed("USER:") == [3308, 1001, 29901]
    assert TOKENIZER.encode_continued("USER:") == [11889, 29901]
    assert TOKENIZER.encode_continued(" USER:") == TOKENIZER.encode("USER:")
    assert TOKENIZER.encode("5") == [29871, 29945]
    assert TOKENIZER.encode_unprefixed("5") == [29945]  # the prefix was a piece of its own
    assert TOKENIZER.encode_unprefixed(" a") == TOKENIZER.encode(" a")


@settings(max_examples=150, deadline=None)
@given(ANY_TEXT, ANY_TEXT, st.sampled_from(CONTROL))
def test_text_is_only_text(before, after, control):
    text = before + control + after
    for encode in (TOKENIZER.encode, TOKENIZER.encode_continued, TOKENIZER.encode_unprefixed):
        assert not {0, 1, 2} & set(encode(text))
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text.replace(SPACE, " ")


@settings(max_examples=150, deadline=None)
@given(ANY_TEXT)
def test_the_two_processors_are_the_models(text):
    twin = processor(llama_like(), dummy_prefix=False)
    assert TOKENIZER.encode_continued(text) == twin.encode(text)
    assert TOKENIZER.encode(text) == processor(llama_like()).encode(text)


@settings(max_examples=150, deadline=None)
@given(st.text("a cton5\n", max_size=20), st.text("a cton5\n", max_size=20))
def test_text_may_be_parted_before_spaces(left, right):
    left = left.rstrip(" ") + "x"
    parts = TOKENIZER.encode(left) + TOKENIZER.encode_continued(" " + right)
    assert TOKENIZER.encode(left + " " + right) == parts


def test_pickles_small_and_equal():
    TOKENIZER.encode("a")
    again = pickle.loads(pickle.dumps(TOKENIZER))
    assert again == TOKENIZER
    assert again.encode("a cat") == TOKENIZER.encode("a cat")
    assert len(pickle.dumps(TOKENIZER)) < len(TOKENIZER.model) + 300


BAD_FILES = {
    "empty": b"",
    "text": b"hello",
    "gzip": b"\x1f\x8b" * 20,
    "zeros": bytes(50),
    "half": llama_like()[:200_000],
    "no eos": llama_like().replace(b"</s>", b"</x>"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(BAD_FILES[name])
    with pytest.raises(UserError) as error:
        SentencePieceTokenizer.open(path)
    assert error.value.problems[0].where == str(path)
    assert code(error) in ("tokenizer/file", "tokenizer/damaged", "tokenizer/control-tokens")


def test_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "none", tmp_path, tmp_path / "fifo", "a\0b"):
        with pytest.raises(UserError) as error:
            SentencePieceTokenizer.open(path)
        assert code(error) == "tokenizer/file"


def test_lone_surrogate():
    with pytest.raises(UserError) as error:
        TOKENIZER.encode("ab\ud800")
    assert code(error) == "tokenizer/surrogate"
    assert "character 2" in str(error.value)


def test_a_rest_that_is_no_piece():
    # The sole piece "_cat" loses its space mark and "cat" is not in the model.
    assert TOKENIZER.encode("cat") == [6635]
    assert TOKENIZER.encode_unprefixed("cat") == TOKENIZER.encode_continued("cat")
