"""Our weights under transformers' names, for parity tests on random weights."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from lmmkit.model.layers import FusedLinear

DECODER = [
    (r"^embed\.", "model.embed_tokens."),
    (r"^blocks\.(\d+)\.", r"model.layers.\1."),
    (r"^norm\.", "model.norm."),
    (r"^head\.", "lm_head."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.mlp_norm\.", ".post_attention_layernorm."),
    (r"\.attention\.out\.", ".self_attn.o_proj."),
    (r"\.attention\.norm\.([qk])\.", r".self_attn.\1_norm."),
    (r"\.attention\.qkv\.(\w)\.", r".self_attn.\1_proj."),
    (r"\.mlp\.gate_up\.(\w+)\.", r".mlp.\1_proj."),
    (r"\.mlp\.down\.", ".mlp.down_proj."),
]
VISION = [
    (r"^patch\.", "embeddings.patch_embedding."),
    (r"^position$", "embeddings.position_embedding.weight"),
    (r"^class_token$", "embeddings.class_embedding"),
    (r"^pre_norm\.", "pre_layrnorm."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"\.attention_norm\.", ".layer_norm1."),
    (r"\.mlp_norm\.", ".layer_norm2."),
    (r"\.qkv\.(\w)\.", r".self_attn.\1_proj."),
    (r"\.out\.", ".self_attn.out_proj."),
    (r"\.up\.", ".mlp.fc1."),
    (r"\.down\.", ".mlp.fc2."),
]
LLAVA = [
    (r"^vision\.", "model.vision_tower."),
    (r"^connector\.first\.", "model.multi_modal_projector.linear_1."),
    (r"^connector\.second\.1\.", "model.multi_modal_projector.linear_2."),
    (r"^decoder\.lm_head\.", "lm_head."),
    (r"^decoder\.model\.", "model.language_model."),
]


def scramble(module: nn.Module, seed: int) -> None:
    """Random values everywhere, norms and biases too, so that no weight can be mistaken for another."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(dict(module.named_parameters()).items()):
            noise = torch.randn(p.shape, generator=draw, dtype=torch.float32)
            is_norm = "norm" in name and name.endswith("weight")
            scale = 0.2 if p.ndim < 2 else 1.2 * p.shape[1:].numel() ** -0.5
            p.copy_(noise * scale + float(is_norm))


def of_decoder(decoder: nn.Module) -> dict[str, Tensor]:
    """For LlamaForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM."""
    return _renamed(_unfused(decoder), DECODER)


def of_vit(vit: nn.Module) -> dict[str, Tensor]:
    """For CLIPVisionModel and SiglipVisionModel, as far as our layers go."""
    state = {name: t for name, t in _unfused(vit).items() if t.numel()}  # SigLIP has no class token
    if "class_token" in state:
        state["class_token"] = state["class_token"][0]
    return _renamed(state, VISION)


def of_lmm(lmm: nn.Module) -> dict[str, Tensor]:
    """For LlavaForConditionalGeneration."""
    parts = {
        "vision.": of_vit(lmm.vision),
        "decoder.": of_decoder(lmm.decoder),
        "connector.": _unfused(lmm.connector),
    }
    return _renamed({at + name: t for at, part in parts.items() for name, t in part.items()}, LLAVA)


def load(theirs: nn.Module, state: dict[str, Tensor], *, spare: str) -> nn.Module:
    """Fills `theirs`; only names that match `spare` (what we do not build) may stay as they are."""
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    left = [name for name in missing if not re.search(spare, name)]
    assert not left and not unexpected, (left, unexpected)
    return theirs.eval()


def _unfused(module: nn.Module) -> dict[str, Tensor]:
    fused = {name: part for name, part in module.named_modules() if isinstance(part, FusedLinear)}
    out = {}
    for name, tensor in module.state_dict().items():
        owner, _, kind = name.rpartition(".")
        if owner in fused:
            out |= {f"{owner}.{part}.{kind}": tensor[rows] for part, rows in fused[owner].slices.items()}
        else:
            out[name] = tensor
    return out


def _renamed(state: dict[str, Tensor], table: list[tuple[str, str]]) -> dict[str, Tensor]:
    out = {}
    for name, tensor in state.items():
        for pattern, new in table:
            name = re.sub(pattern, new, name)
        assert name not in out, name
        out[name] = tensor
    return out
