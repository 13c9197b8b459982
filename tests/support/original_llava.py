"""Original LLaVA-1.6 folders with the weights of a llava-next folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors.torch import load_file, save_file

RENAMED = (
    (r"vision_tower\.(vision_model\.)?", "model.vision_tower.vision_tower.vision_model."),
    (r"multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
    (r"multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    (r"language_model\.model\.", "model."),
    (r"language_model\.lm_head\.", "lm_head."),
    (r"image_newline$", "model.image_newline"),
)
IMAGES = {
    "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu", "use_mm_proj": True,
    "mm_resampler_type": None, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "mm_patch_merge_type": "spatial_unpad",
    "image_aspect_ratio": "anyres", "image_crop_resolution": 224, "image_split_resolution": 224,
}  # fmt: skip


def renamed(name: str) -> str:
    """Returns the name of a tensor of a llava-next folder in an original one."""
    (found,) = (theirs + name[m.end() :] for ours, theirs in RENAMED if (m := re.match(ours, name)))
    return found


def original(public: Path, folder: Path, kind: str = "llava", **changes: object) -> Path:
    """Writes the weights, the tokenizer and the grids of a llava-next folder as LLaVA-1.6 was published: each grid as
    [width, height], and no shape of the encoder. `kind`: its model_type. `changes`: of the config; None: left out."""
    folder.mkdir()
    config = json.loads((public / "config.json").read_text())
    sizes = [[width, height] for height, width in config["image_grid_pinpoints"]]
    values = {**config["text_config"], **IMAGES, "model_type": kind, "image_grid_pinpoints": sizes, **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    state = {renamed(name): tensor for name, tensor in load_file(public / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    for path in public.iterdir():
        if path.name.startswith(("tokenizer", "added_tokens")):
            (folder / path.name).write_bytes(path.read_bytes())
    return folder
