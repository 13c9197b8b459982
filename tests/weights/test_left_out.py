"""What an import leaves out is listed: settings of generation, chat templates, windows and dropout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmmkit.import_export import import_model
from lmmkit.weights.detect import open_pretrained
from lmmkit.weights.left_out import left_out
from tests.support import chat_folders, hf_model_folders

TEXT = {"model_type": "llama", "max_position_embeddings": 512} | hf_model_folders.ODD["plain"]


def notices(folder: Path, files: dict[str, dict | str], **config: object) -> list[str]:
    """Returns the notices for a decoder's folder with these files, each without the path of the folder."""
    for name, value in {"config.json": TEXT | config, **files}.items():
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return [each.removeprefix(f"{folder}/") for each in left_out(open_pretrained(folder), "vicuna_v1")]


@pytest.mark.parametrize(
    ("generation", "listed"),
    [
        ({}, []),
        ({"eos_token_id": [2, 5], "pad_token_id": 0, "use_cache": True}, []),
        ({"temperature": 0.2, "top_p": 0.7}, []),  # transformers answers greedily all the same
        ({"do_sample": False, "temperature": 0.2}, []),
        ({"do_sample": True, "temperature": 0.9, "top_p": 0.6, "top_k": None},
         ["do_sample True, temperature 0.9, top_p 0.6: answers are greedy unless"]),
        ({"do_sample": True}, ["do_sample True: answers are greedy"]),
        ({"repetition_penalty": 1.05, "no_repeat_ngram_size": 0, "num_beams": 1},
         ["repetition_penalty 1.05 not applied to answers; exports leave it out"]),
        ({"max_length": 4096, "max_new_tokens": 7}, ["max_length 4096, max_new_tokens 7 not applied"]),
        ({"do_sample": True, "num_beams": 3}, ["num_beams 3 not applied", "do_sample True: answers"]),
    ],
)  # fmt: skip
def test_settings_of_generation(generation, listed, tmp_path):
    found = notices(tmp_path, {"generation_config.json": generation})
    assert len(found) == len(listed)
    for got, want in zip(found, listed, strict=True):
        assert got.startswith(f"generation_config.json: {want}") and "exports leave it out" in got


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({}, None), ({"tokenizer_config.json": {"legacy": False}}, None),
        ({"chat_template.jinja": "{{ messages }}"}, "chat_template.jinja"),
        ({"chat_template.json": {"chat_template": "x"}, "tokenizer_config.json": {"chat_template": "x"}}, "chat_template.json"),
        ({"tokenizer_config.json": {"chat_template": "x"}}, "tokenizer_config.json"),
    ],
)  # fmt: skip
def test_a_chat_template(files, named, tmp_path):
    words = "its chat template is not read; the model and its exports have `vicuna_v1`"
    assert notices(tmp_path, files) == ([f"{named}: {words}"] if named else [])


@pytest.mark.parametrize(
    ("config", "context", "listed"),
    [
        ({"sliding_window": 64}, 512, []),  # llama has none
        ({"model_type": "mistral", "sliding_window": 64}, 64, ["sliding_window 64: the context ends there; exports have no window"]),
        ({"model_type": "mistral", "sliding_window": None}, 512, []),
        ({"model_type": "mistral", "sliding_window": 512}, 512, []),
        ({"model_type": "qwen2", "sliding_window": 64}, 512, []),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True}, 64, ["sliding_window 64: the context"]),
        ({"attention_dropout": 0.0}, 512, []),
        ({"attention_dropout": 0.1}, 512, ["attention_dropout 0.1: not applied in training; exports leave it out"]),
        # transformers' default for a config without the key
        ({"model_type": "mistral", "max_position_embeddings": 8192}, 4096, ["sliding_window 4096: the context"]),
        ({"model_type": "mistral", "max_position_embeddings": 8192, "sliding_window": None}, 8192, []),
    ],
)  # fmt: skip
def test_settings_of_the_decoder(config, context, listed, tmp_path):
    found = notices(tmp_path, {}, **config)
    assert len(found) == len(listed)
    for got, want in zip(found, listed, strict=True):
        assert got.startswith(f"config.json: {want}")
    assert open_pretrained(tmp_path).text_section().context == context


def test_a_window_of_null_inside_a_llava_is_none(tmp_path):
    """Defaults fill in what a config leaves out, and not a null that has a meaning."""
    public = chat_folders.llava(tmp_path / "hf", "mistral", "pieces")
    config = json.loads((public / "config.json").read_text())
    for change, context in ({"sliding_window": None}, 8192), ({}, 4096):
        text = {k: v for k, v in config["text_config"].items() if k != "sliding_window"} | change
        edited = config | {"text_config": text | {"max_position_embeddings": 8192}}
        (public / "config.json").write_text(json.dumps(edited))
        assert open_pretrained(public).text_section().context == context


def test_an_import_warns_of_them(tmp_path, caplog):
    public = chat_folders.llava(tmp_path / "hf", "llama", "pieces")
    (public / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_p": 0.6}))
    (public / "chat_template.jinja").write_text("{{ messages }}")
    import_model(public, tmp_path / "ours")
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("do_sample True, top_p 0.6" in each for each in warned)
    assert any("chat_template.jinja" in each and "`vicuna_v1`" in each for each in warned)
