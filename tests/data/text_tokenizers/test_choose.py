"""The kind of a tokenizer: by its file, by name, and what is refused."""

from typing import get_args, get_type_hints

import pytest

from lmmkit.data.text_tokenizers.choose import TOKENIZER_KINDS, open_tokenizer
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lmmkit.errors import UserError
from lmmkit.recipe import Tokenizer
from tests.support.fake_llama_tokenizer import llama_like


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(llama_like())
    (tmp_path / "tokenizer.json").write_text("[]")
    return tmp_path


def refused(path, kind: str):
    with pytest.raises(UserError) as error:
        open_tokenizer(path, kind)
    return error.value.problems[0]


def test_a_recipe_offers_every_kind_and_auto():
    assert set(get_args(get_type_hints(Tokenizer)["kind"])) == {"auto", *TOKENIZER_KINDS}


def test_auto_prefers_the_sentencepiece_model_of_a_folder(folder):
    assert open_tokenizer(folder) == SentencePieceTokenizer(model=llama_like())
    (folder / "tokenizer.model").unlink()
    assert refused(folder, "auto").where == str(folder / "tokenizer.json")


@pytest.mark.parametrize("name", ["tokenizer.json", "x.tiktoken", "spiece.model"])
def test_auto_goes_by_the_suffix_of_a_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    code = {"x.tiktoken": "tokenizer/tiktoken"}.get(name, "tokenizer/damaged")
    assert refused(tmp_path / name, "auto").code == code


@pytest.mark.parametrize(("kind", "name"), [("tokenizers", "tokenizer.json"), ("tiktoken", "*.tiktoken")])
def test_a_named_kind_takes_no_other_file(folder, kind, name):
    (folder / "tokenizer.json").unlink()
    problem = refused(folder, kind)
    assert (problem.code, problem.where) == ("tokenizer/file", str(folder / name))


def test_an_unknown_kind_is_refused(folder):
    assert "Did you mean `sentencepiece`" in str(refused(folder, "sentencepeace"))
