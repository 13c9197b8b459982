"""A model described whose prompts no template writes, and whose encoder is in another folder."""

from __future__ import annotations

import json

import pytest
import transformers as hf

from lmmkit.errors import UserError
from lmmkit.show_model import show_model
from tests.support import chat_folders, hf_model_folders
from tests.support.original_llava import IMAGES
from tests.test_cli import run


def test_a_model_with_prompts_of_its_own_is_shown_without_a_template(tmp_path):
    """Writes the configs alone, of a LLaVA-1.6 on Mistral and of its llava-next twin."""
    clip, text = hf_model_folders.VISIONS["clip"], hf_model_folders.DECODERS["mistral"](**chat_folders.SHAPE)
    sizes = [[30, 60], [60, 30]]
    hf.LlavaNextConfig(vision_config=clip, text_config=text, image_grid_pinpoints=sizes).save_pretrained(
        tmp_path / "twin"
    )
    clip.save_pretrained(tmp_path / "clip")
    values = {**text.to_dict(), **IMAGES, "model_type": "llava_mistral", "image_grid_pinpoints": sizes[::-1]}
    (folder := tmp_path / "public").mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="model/no-vision"):
        show_model(folder)
    found, theirs = show_model(folder, vision=tmp_path / "clip"), show_model(tmp_path / "twin")
    assert found["parameters"] == theirs["parameters"] and found["kind"] == "llava"
    own, chat = found["model"]["chat"], theirs["model"]["chat"]
    assert own["image_fit"] == chat["image_fit"] and (own["template"], chat["template"]) == (
        None,
        "vicuna_v1",
    )
    printed = run("model", "show", folder, "--vision", tmp_path / "clip")
    assert "prompts as `mistral_instruct`: no template writes them" in printed and "vicuna_v1" not in printed
    with pytest.raises(UserError, match=r"--vision.*convert/option"):
        show_model(tmp_path / "clip", vision=tmp_path / "clip")
