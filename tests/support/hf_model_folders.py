"""transformers' models with random weights in folders, in odd shapes: what parity is tested on."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf

from tests.support.hf_weights import scramble

ODD = {
    "plain": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 52, "vocab_size": 131},
    "grouped": {
        "hidden_size": 42, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
        "intermediate_size": 36, "vocab_size": 97,
    },
    "tied": {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 6,
        "intermediate_size": 44, "vocab_size": 203, "tie_word_embeddings": True,
    },
}  # fmt: skip
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
}  # fmt: skip
DECODERS = {
    "llama": hf.LlamaConfig,
    "mistral": hf.MistralConfig,
    "qwen2": hf.Qwen2Config,
    "qwen3": hf.Qwen3Config,
}


def decoder(family: str, shape: str, rope: str = "default") -> hf.PreTrainedModel:
    """Returns a causal model with every value random, norms and biases too."""
    config = DECODERS[family](**kv(ODD[shape]), max_position_embeddings=64, rope_parameters=ROPES[rope])
    return made(hf.AutoModelForCausalLM.from_config(config))


def kv(shape: dict) -> dict:
    """Returns the shape with its number of key heads: the families have different defaults."""
    return {"num_key_value_heads": shape["num_attention_heads"]} | shape


CLIP = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 30,
    "patch_size": 10,
}
VISIONS = {
    "clip": hf.CLIPVisionConfig(**CLIP),
    "clip gelu": hf.CLIPVisionConfig(
        **(CLIP | {"hidden_act": "gelu", "num_hidden_layers": 2, "image_size": 20})
    ),
    "siglip": hf.SiglipVisionConfig(**CLIP),
}


def llava(text: str, vision: str, shape: str, layer: int = -2, image: int = 90) -> hf.PreTrainedModel:
    """Returns a LLaVA as transformers builds it, with image token `image`."""
    config = hf.LlavaConfig(
        vision_config=VISIONS[vision],
        text_config=DECODERS[text](**kv(ODD[shape]), max_position_embeddings=96),
        image_token_index=image, vision_feature_layer=layer,
        vision_feature_select_strategy="full" if vision == "siglip" else "default",
        tie_word_embeddings=ODD[shape].get("tie_word_embeddings", False),
    )  # fmt: skip
    return made(hf.LlavaForConditionalGeneration(config))


def made(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    """With random values, in eval mode."""
    scramble(model, 1)
    return model.eval()


def saved(model: hf.PreTrainedModel, folder: Path, **options) -> Path:
    """Saves a model and returns its folder."""
    model.save_pretrained(folder, **options)
    return folder


def ids(
    vocab: int, lengths: list[int], *, side: str = "right", seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, attention_mask) of random prompts, padded on one side with id 0."""
    draw = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    id_BT = torch.zeros(len(lengths), longest, dtype=torch.int64)
    mask_BT = torch.zeros_like(id_BT)
    for i, n in enumerate(lengths):
        place = slice(0, n) if side == "right" else slice(longest - n, longest)
        id_BT[i, place] = torch.randint(3, min(vocab, 90), (n,), generator=draw)
        mask_BT[i, place] = 1
    return id_BT, mask_BT


def with_images(
    id_BT: torch.Tensor, mask_BT: torch.Tensor, image_starts: list[list[int]], image: int, n: int
):
    """Writes `n` image placeholders from each of `image_starts[b]` on."""
    for b, starts in enumerate(image_starts):
        for start in starts:
            assert mask_BT[b, start : start + n].all()
            id_BT[b, start : start + n] = image
    return id_BT


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """max |a - b| / max |b|"""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
