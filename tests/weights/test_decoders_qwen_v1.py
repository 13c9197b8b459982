"""Qwen-7B as first published, which transformers has no class for, against a twin written plainly."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import lmmkit
from tests.support import hf_model_folders

CONFIG = {
    "model_type": "qwen", "intermediate_size": 2 * 28, "seq_length": 128, "layer_norm_epsilon": 1e-6,
    "no_bias": True, "rotary_emb_base": 10000, "scale_attn_weights": True, "rotary_pct": 1.0,
    "tie_word_embeddings": False, "use_dynamic_ntk": True, "use_logn_attn": True,
    "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
}  # fmt: skip
SHAPES = [(48, 4, 2, 131), (40, 2, 3, 97), (36, 6, 1, 203)]  # width, heads, depth, vocabulary
TOLERANCE = 1e-5
State = dict[str, torch.Tensor]


def twin(state: State, heads: int, id_T: torch.Tensor) -> torch.Tensor:
    """Logits [T, V] in the tensors' own type; norms, angles and softmax no narrower than float32."""
    wide = torch.promote_types(state["lm_head.weight"].dtype, torch.float32)
    size = state["lm_head.weight"].shape[1] // heads

    def norm(x, name):
        x_wide = x.to(wide)
        unit = x_wide / (x_wide.pow(2).mean(-1, keepdim=True) + CONFIG["layer_norm_epsilon"]).sqrt()
        return unit.to(x) * state[f"transformer.{name}.weight"]

    def turned(x):
        angle = torch.arange(len(x))[:, None] * 1e4 ** -(torch.arange(0, size, 2) / size)
        cos, sin = (torch.cat([f(angle)] * 2, -1)[:, None].to(x) for f in (torch.cos, torch.sin))
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat([-right, left], -1) * sin

    x = state["transformer.wte.weight"][id_T]
    causal = torch.ones(len(id_T), len(id_T)).tril().bool()
    for n in range(sum(name.endswith("ln_1.weight") for name in state)):
        at = f"transformer.h.{n}."
        y = norm(x, f"h.{n}.ln_1")
        qkv = y @ state[f"{at}attn.c_attn.weight"].T + state[f"{at}attn.c_attn.bias"]
        q, k, v = (part.unflatten(-1, (heads, size)) for part in qkv.chunk(3, -1))
        score = torch.einsum("qhd,khd->hqk", turned(q), turned(k)) / size**0.5
        weight = score.masked_fill(~causal, -torch.inf).to(wide).softmax(-1).to(x)
        out = torch.einsum("hqk,khd->qhd", weight, v).flatten(1)
        x = x + out @ state[f"{at}attn.c_proj.weight"].T
        y = norm(x, f"h.{n}.ln_2")
        gate = F.silu(y @ state[f"{at}mlp.w2.weight"].T)
        x = x + (y @ state[f"{at}mlp.w1.weight"].T * gate) @ state[f"{at}mlp.c_proj.weight"].T
    return norm(x, "ln_f") @ state["lm_head.weight"].T


def written(folder, width: int, heads: int, depth: int, vocab: int, dtype=torch.float32) -> State:
    """Writes a folder in the public format and returns its tensors."""
    sizes = {
        "hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": depth, "vocab_size": vocab,
        "kv_channels": width // heads,
    }  # fmt: skip
    shapes = {"wte.weight": (vocab, width), "ln_f.weight": (width,)}
    for n in range(depth):
        shapes |= {f"h.{n}.{name}": shape for name, shape in {
            "ln_1.weight": (width,), "ln_2.weight": (width,), "attn.c_attn.weight": (3 * width, width),
            "attn.c_attn.bias": (3 * width,), "attn.c_proj.weight": (width, width), "mlp.w1.weight": (28, width),
            "mlp.w2.weight": (28, width), "mlp.c_proj.weight": (width, 28),
        }.items()}  # fmt: skip
    shapes = {f"transformer.{name}": shape for name, shape in shapes.items()} | {
        "lm_head.weight": (vocab, width)
    }
    draw = torch.Generator().manual_seed(0)
    state = {k: torch.randn(s, generator=draw) * s[-1] ** -0.5 + ("ln_" in k) for k, s in shapes.items()}
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | sizes))
    return state


@pytest.mark.parametrize("width, heads, depth, vocab", SHAPES)
def test_logits_are_the_twins(width, heads, depth, vocab, tmp_path):
    state = written(tmp_path / "model", width, heads, depth, vocab)
    id_BT, _ = hf_model_folders.ids(vocab, [37])
    got = lmmkit.load(tmp_path / "model", device="cpu").logits(id_BT)[0]
    assert hf_model_folders.error(got, twin(state, heads, id_BT[0])) < TOLERANCE


@pytest.mark.parametrize("width, heads, depth, vocab", SHAPES)
def test_bf16_is_as_near_to_float64_as_the_twins(width, heads, depth, vocab, tmp_path):
    state = written(tmp_path / "model", width, heads, depth, vocab, torch.bfloat16)
    exact_state = {name: tensor.double() for name, tensor in state.items()}
    ours = lmmkit.load(tmp_path / "model", dtype=torch.bfloat16, device="cpu")
    error = torch.zeros(2, dtype=torch.float64)  # ours, the twin's
    for row in hf_model_folders.ids(vocab, [40] * 4)[0]:
        exact = twin(exact_state, heads, row)
        low = [ours.logits(row[None])[0], twin(state, heads, row)]
        error += torch.stack([((each - exact) ** 2).mean() for each in low])
    ratio = float((error[0] / error[1]).sqrt())
    print(f"bf16 error over the twin's: {ratio:.3f}")
    assert ratio <= 1.2


@pytest.mark.parametrize("lengths", [[29], [29, 11, 3, 20]], ids=["one", "left-padded four"])
def test_greedy_tokens_are_the_twins(lengths, tmp_path):
    _, heads, _, vocab = SHAPES[0]
    state = written(tmp_path / "model", *SHAPES[0])
    id_BT, mask_BT = hf_model_folders.ids(vocab, lengths, side="left")
    ours = lmmkit.load(tmp_path / "model", device="cpu")
    got = ours.generate(id_BT, max_new_tokens=64, attention_mask=mask_BT, eos_token_id=[96_000])
    near = 0
    for id_T, seen_T, answer in zip(id_BT, mask_BT.bool(), got, strict=True):
        path = id_T[seen_T]
        for token in answer:
            best = twin(state, heads, path)[-1].topk(2)
            if token != best.indices[0]:
                assert best.values[0] - best.values[1] < 1e-4
                near += 1
                break
            path = torch.cat([path, token[None]])
    print(f"{near} of {len(lengths)} differ at a near tie")
