"""Files of one folder that name different tokens: the fuller vocabulary is taken, or the folder is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import transformers as hf

from lmmkit.data.chat_templates import default_template
from lmmkit.data.text_tokenizers.choose import open_tokenizer
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lmmkit.errors import UserError
from tests.support import chat_folders

MORE = {"<pad>": 32_000, "<|im_start|>": 32_001, "<|im_end|>": 32_002}


def decoder(words: dict[str, int]) -> dict[str, dict]:
    """Returns tokens in the form of tokenizer_config.json, among them those that the model has itself."""
    return {str(i): {"content": word, "special": True} for word, i in ({"<s>": 1, "</s>": 2} | words).items()}


def write(folder: Path, place: str, words: dict[str, int]) -> Path:
    """Writes the sentencepiece model, and added tokens in one of the three places."""
    if place == "tokenizer.json":
        chat_folders.write_tokenizer(folder, "pieces json")
        value = json.loads((folder / place).read_text())
        plain = {
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": False,
        }
        value["added_tokens"] += [{"id": i, "content": word, **plain} for word, i in words.items()]
        (folder / place).write_text(json.dumps(value))
        chat_folders.write_tokenizer(folder, "pieces")
        return folder
    chat_folders.write_tokenizer(folder, "pieces")
    content = words if place == "added_tokens.json" else {"added_tokens_decoder": decoder(words)}
    (folder / place).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("place", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
def test_tokens_beside_a_sentencepiece_model_are_control_tokens(place, tmp_path):
    folder = write(tmp_path / "a", place, MORE)
    ours, alone = open_tokenizer(folder), open_tokenizer(folder, "sentencepiece")
    assert isinstance(ours, SentencePieceTokenizer) and (ours.size, ours.text_size, alone.size) == (
        32_003,
        32_000,
        32_000,
    )
    assert {word: ours.control(word) for word in MORE} == MORE
    assert {i: ours.spelling(i) for i in MORE.values()} == {i: word for word, i in MORE.items()}
    text = "a <|im_end|> on <pad> mat"
    assert ours.encode(text) == alone.encode(text) and max(ours.encode(text)) < 32_000
    assert ours.decode([*ours.encode("a cat"), 32_002, 32_000]) == "a cat"
    assert (default_template(ours), default_template(alone)) == ("chatml", "vicuna_v1")
    (tmp_path / "again").mkdir()
    for name, data in ours.files().items():
        (tmp_path / "again" / name).write_bytes(data)
    assert open_tokenizer(tmp_path / "again") == ours == pickle.loads(pickle.dumps(ours))


def test_files_that_agree_change_nothing(tmp_path):
    folder = chat_folders.write_tokenizer(tmp_path, "pieces json")
    chat_folders.write_tokenizer(folder, "pieces")
    (folder / "added_tokens.json").write_text("{}")
    assert open_tokenizer(folder) == SentencePieceTokenizer.open(folder / "tokenizer.model")


def test_a_json_with_more_pieces_than_the_model_is_taken(tmp_path):
    folder = chat_folders.write_tokenizer(tmp_path, "pieces json")
    chat_folders.write_tokenizer(folder, "pieces")
    value = json.loads((folder / "tokenizer.json").read_text())
    value["model"]["vocab"]["catmat"] = 32_000
    value["model"]["merges"].append(
        ["cat", "mat"] if isinstance(value["model"]["merges"][0], list) else "cat mat"
    )
    value["model"]["vocab"] |= {"cat": 32_001, "mat": 32_002}
    (folder / "tokenizer.json").write_text(json.dumps(value))
    (folder / "added_tokens.json").write_text('{"<end>": 32004}')
    ours = open_tokenizer(folder)
    assert not isinstance(ours, SentencePieceTokenizer) and ours.size == 32_005
    assert ours.control("<end>") == 32_004 and ours.spelling(32_003) == "<|unused_32003|>"
    assert hf.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).vocab_size == 32_003
    pieces = value["model"]["vocab"]
    pieces["other"] = pieces.pop(next(word for word, i in pieces.items() if i == 31_000))
    (folder / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match="tokenizer/disagree"):
        open_tokenizer(folder)


def test_tokens_beside_a_json_alone_are_added(tmp_path):
    folder = chat_folders.write_tokenizer(tmp_path, "qwen base")
    before = open_tokenizer(folder)
    (folder / "added_tokens.json").write_text(
        json.dumps({"<|im_end|>": before.control("<|im_end|>"), "<x>": before.size + 1})
    )
    ours = open_tokenizer(folder)
    assert ours.size == before.size + 2 and ours.control("<x>") == before.size + 1
    assert ours.encode("a <x>") == before.encode("a <x>") and open_tokenizer(folder, "tokenizers") == before


BAD = {
    "one id for two": ({"<a>": 32_000}, {"<b>": 32_000}, "id 32000 is '<a>' in added_tokens.json and '<b>'"),
    "two ids for one": ({"<a>": 32_000}, {"<a>": 32_001}, "'<a>' is id 32000 in added_tokens.json and 32001"),
    "an id of a piece": ({"<a>": 500}, {}, "id 500 is"),
    "a piece again": ({"</s>": 32_000}, {}, "'</s>' is id 2 in tokenizer.model and 32000"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_files_that_disagree_are_refused_with_the_key_that_settles_it(case, tmp_path):
    listed, config, words = BAD[case]
    folder = write(tmp_path, "added_tokens.json", listed)
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder(config)}))
    with pytest.raises(UserError, match="tokenizer/disagree") as error:
        open_tokenizer(folder)
    (problem,) = error.value.problems
    assert words in problem.got and "model.tokenizer.kind" in problem.hint
    assert open_tokenizer(folder, "sentencepiece").size == 32_000


@pytest.mark.parametrize(
    "listed",
    [
        '{"<a>": -1}',
        '{"<a>": 1e9}',
        '{"<a>": 99999999999}',
        '{"<a>": "3"}',
        '{"<a>": [1]}',
        '{"<a>": 32000, "<b>": 32000}',
    ],
)
def test_ids_that_are_no_ids_are_refused(listed, tmp_path):
    folder = write(tmp_path, "added_tokens.json", {})
    (folder / "added_tokens.json").write_text(listed)
    with pytest.raises(UserError, match="tokenizer/damaged"):
        open_tokenizer(folder)
