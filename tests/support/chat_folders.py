"""Public LLaVA folders with random weights, tokenizers of three kinds, and an answer that comes to an end."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers as hf

from lmmkit.api.sample import Turn
from lmmkit.data.text_tokenizers.choose import open_tokenizer
from lmmkit.inference.chat_model import ChatModel
from tests.data.test_images import noisy_image
from tests.data.text_tokenizers.test_hf_tokenizer import LLAMA3, META, QWEN, SPLIT, byte_level
from tests.support import hf_model_folders
from tests.support.fake_llama_tokenizer import SPACE, write_llama_like

SHAPE = hf_model_folders.kv(hf_model_folders.ODD["plain"]) | {"max_position_embeddings": 512}
MADE = tempfile.TemporaryDirectory(prefix="chat-folders-")  # each is made once, and copied
TOKENIZERS = (
    "pieces", "pieces chat", "pieces json", "pieces old json", "qwen base", "qwen chat", "llama3 base", "llama3 chat"
)  # fmt: skip
# the templates whose tokens each tokenizer has
FITTING = [
    ("plain", "pieces"), ("vicuna_v1", "pieces"), ("vicuna_v1", "pieces json"),
    pytest.param("vicuna_v1", "pieces old json", marks=pytest.mark.slow),
    ("chatml", "pieces chat"), ("plain", "qwen base"), ("vicuna_v1", "qwen base"), ("chatml", "qwen base"),
    ("chatml", "qwen chat"), ("plain", "llama3 base"), ("vicuna_v1", "llama3 base"), ("llama3", "llama3 base"),
    ("llama3", "llama3 chat"),
]  # fmt: skip
QUESTIONS = (
    (Turn("user", "Is a cat on the mat?", images=1),),
    (Turn("user", "a mat, 5 cats"),),
)


def write_tokenizer(folder: Path, name: str) -> Path:
    """Writes one of `TOKENIZERS` to a folder. In a base, the end token is not what closes a turn."""
    return Path(shutil.copytree(_tokenizer(name), folder, dirs_exist_ok=True))


def _new_folder() -> Path:
    return Path(tempfile.mkdtemp(dir=MADE.name))


@functools.cache
def _tokenizer(name: str) -> Path:
    folder = _new_folder()
    if name in ("pieces", "pieces chat"):
        write_llama_like(folder)
        if name == "pieces chat":
            (folder / "added_tokens.json").write_text('{"<|im_start|>": 32001, "<|im_end|>": 32000}')
    elif name.startswith("pieces"):
        _as_json(folder, old="old" in name)
    elif name.startswith("qwen"):
        byte_level(folder, SPLIT, QWEN, True, None, QWEN[0] if name.endswith("base") else QWEN[2])
    else:
        byte_level(folder, LLAMA3, META, False, META[0], META[1] if name.endswith("base") else META[4])
    return folder


def _as_json(folder: Path, *, old: bool) -> None:
    """Writes the sentencepiece model as transformers converts it; `old`: the space mark by a normalizer."""
    write_llama_like(folder)
    words = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    hf.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "tokenizer.model").unlink()
    if old:
        value = json.loads((folder / "tokenizer.json").read_text())
        spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        value["normalizer"] = {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": SPACE}, spaces],
        }
        (folder / "tokenizer.json").write_text(json.dumps(value | {"pre_tokenizer": None}))


def llava(
    folder: Path, family: str, tokenizer: str, *, vision: str = "clip", eos: Sequence[int] | None = None
) -> Path:
    """Writes a llava-hf folder with a tokenizer. `eos`: what its generation_config.json names."""
    made = _llava(family, tokenizer, vision, None if eos is None else tuple(eos))
    return Path(shutil.copytree(made, folder, dirs_exist_ok=True))


@functools.cache
def _llava(family: str, tokenizer: str, vision: str, eos: tuple[int, ...] | None) -> Path:
    folder = write_tokenizer(_new_folder(), tokenizer)
    size = open_tokenizer(folder).size
    config = hf.LlavaConfig(
        vision_config=hf_model_folders.VISIONS[vision],
        text_config=hf_model_folders.DECODERS[family](**SHAPE | {"vocab_size": size + 3}),
        image_token_index=size, vision_feature_layer=-2,
        vision_feature_select_strategy="full" if vision == "siglip" else "default",
    )  # fmt: skip
    model = hf_model_folders.made(hf.LlavaForConditionalGeneration(config))
    model.generation_config = hf.GenerationConfig(eos_token_id=None if eos is None else list(eos))
    return hf_model_folders.saved(model, folder)


def llava_next(
    folder: Path, grids: Sequence[tuple[int, int]], *, family: str = "llama", tokenizer: str = "pieces"
) -> Path:
    """Writes a llava-next folder with random weights, its newline row too, and a tokenizer. `grids`: (lines, columns)
    of tiles."""
    write_tokenizer(folder, tokenizer)
    size, side = open_tokenizer(folder).size, hf_model_folders.CLIP["image_size"]
    config = hf.LlavaNextConfig(
        vision_config=hf_model_folders.VISIONS["clip"],
        text_config=hf_model_folders.DECODERS[family](**SHAPE | {"vocab_size": size + 3}),
        image_token_index=size, vision_feature_layer=-2,
        image_grid_pinpoints=[[lines * side, columns * side] for lines, columns in grids],
    )  # fmt: skip
    return hf_model_folders.saved(hf_model_folders.made(hf.LlavaNextForConditionalGeneration(config)), folder)


def question_image(folder: Path) -> str:
    """Writes an image of noise, and returns its path."""
    path = folder / "noise.png"
    if not path.exists():
        noisy_image(50, 41).save(path)
    return str(path)


def end_with(
    folder: Path, prompt_id_T: list[int], pixels: torch.Tensor | None, end: int, ours: ChatModel
) -> int:
    """Changes the weights of a public folder so that `end` is the greedy token after a few others.

    Exchanges two rows of the head, so that the tokens before are as they were. Returns how many they are.
    """
    free = ours.generate(torch.tensor([prompt_id_T]), pixels, max_new_tokens=16, eos_token_id=[10**9])[
        0
    ].tolist()
    at = next(i for i in range(3, 16) if free[i] not in free[:i] and end not in free[: i + 1])
    model = hf.LlavaForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        weight = model.lm_head.weight
        weight[[free[at], end]] = weight[[end, free[at]]].clone()
    generation = json.loads((folder / "generation_config.json").read_text())
    hf_model_folders.saved(model, folder)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return at
