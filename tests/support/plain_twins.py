"""Slow plain twins of the clever parts: loops, whole maps, one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmmkit.model.decoder import Decoder

TWIN_CASES = [  # data type, largest relative difference, and whether views share their prefix
    (torch.float64, 1e-12, True), (torch.float64, 1e-12, False), (torch.float32, 5e-6, True),
    pytest.param(torch.float32, 5e-6, False, marks=pytest.mark.slow),
]  # fmt: skip


def attention(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, see_TT: Tensor) -> tuple[Tensor, Tensor]:
    """With the whole map, made as it is defined, in float64: outputs [T, H, K], and the map [T, H, T]."""
    head_of, of = torch.arange(q_THK.shape[1]) // (q_THK.shape[1] // k_TGK.shape[1]), q_THK.dtype
    q_THK, k_THK, v_THK = q_THK.double(), k_TGK[:, head_of].double(), v_TGK[:, head_of].double()
    score_THT = torch.einsum("thk,shk->ths", q_THK, k_THK) / q_THK.shape[-1] ** 0.5
    map_THT = score_THT.masked_fill(~see_TT[:, None], -torch.inf).softmax(-1)
    return torch.einsum("ths,shk->thk", map_THT, v_THK).to(of), map_THT.to(of)


def mass(map_THT: Tensor, key_T: Tensor, row_R: Tensor) -> Tensor:
    """[R]: lines of the map summed over the key rows, averaged over heads."""
    return map_THT[row_R][:, :, key_T].sum(-1).mean(-1)


def causal(n: int) -> Tensor:
    """bool [n, n]: one sequence's mask."""
    return torch.ones(n, n, dtype=torch.bool).tril()


def grow(groups: Sequence[Sequence[np.ndarray]]) -> tuple[Tensor, list[np.ndarray]]:
    """Returns (bool mask, rows of every sequence) with the views apart, one after the other."""
    lengths = [len(keys) for sequences in groups for keys in sequences]
    see = torch.block_diag(*(causal(n) for n in lengths)).bool()
    starts = np.cumsum([0, *lengths])
    return see, [np.arange(a, a + n) for a, n in zip(starts, lengths, strict=False)]


def trie_rows(groups: Sequence[Sequence[np.ndarray]]) -> int:
    """Rows that a forest takes at least: distinct prefixes of every group."""
    prefixes = [
        {tuple(keys[: i + 1]) for keys in sequences for i in range(len(keys))} for sequences in groups
    ]
    return sum(map(len, prefixes))


def decoder(model: Decoder, x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """(states after the final norm [T, D], every layer's map [L, H, T, T]) of one causal sequence."""
    states, maps = blocks(model, x_TD)
    return rms(states[-1], model.norm.weight, model.shape.norm_eps), maps


def blocks(model: Decoder, x_TD: Tensor) -> tuple[list[Tensor], Tensor]:
    """(states [T, D] before the first block and after each, every layer's map [L, H, T, T]) of one sequence."""
    shape, w = model.shape, weights(model)
    states, maps = [x_TD], []
    for i in range(shape.depth):
        at = f"blocks.{i}."
        out_TD, map_HTT = _attention(
            x_TD, shape, {k.removeprefix(at): t for k, t in w.items() if k.startswith(at)}
        )
        x_TD = x_TD + out_TD
        h_TD = rms(x_TD, w[at + "mlp_norm.weight"], shape.norm_eps)
        gate_TF, up_TF = (h_TD @ w[at + "mlp.gate_up.weight"].T).chunk(2, -1)
        x_TD = x_TD + (F.silu(gate_TF) * up_TF) @ w[at + "mlp.down.weight"].T
        maps.append(map_HTT)
        states.append(x_TD)
    return states, torch.stack(maps)


def weights(model: Decoder) -> dict[str, Tensor]:
    """Returns the weights by name, with the low-rank updates added to them."""
    found = dict(model.named_parameters())
    for path, linear in model.named_modules():
        for part, adapter in getattr(linear, "lora", {}).items():
            rows = getattr(linear, "slices", {}).get(part, slice(0, len(linear.weight)))
            above, below = rows.start, len(linear.weight) - rows.stop
            update = F.pad(adapter.scale * adapter.b @ adapter.a, (0, 0, above, below))
            found[f"{path}.weight"] = found[f"{path}.weight"] + update
    return found


def _attention(x_TD: Tensor, shape, w: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    h_TD = rms(x_TD, w["attention_norm.weight"], shape.norm_eps)
    qkv = h_TD @ w["attention.qkv.weight"].T + w.get("attention.qkv.bias", 0)
    heads = qkv.unflatten(-1, (-1, shape.head_size))
    q, k, v = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], 1)
    if shape.qk_norm:
        q = rms(q, w["attention.norm.q.weight"], shape.norm_eps)
        k = rms(k, w["attention.norm.k.weight"], shape.norm_eps)
    q, k = turned(q, shape.rope.theta), turned(k, shape.rope.theta)
    out_THK, map_THT = attention(q, k, v, causal(len(x_TD)))
    return out_THK.flatten(1) @ w["attention.out.weight"].T, map_THT.transpose(0, 1)


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(x_THK: Tensor, theta: float) -> Tensor:
    """Pair (k, k + K/2) of row t as a complex number times exp(i t / theta^(2k/K)).

    The angle is rounded to float32, as the model's is.
    """
    half = x_THK.shape[-1] // 2
    power = torch.arange(half, dtype=torch.float32) * 2 / x_THK.shape[-1]
    angle_TK = torch.arange(len(x_THK), dtype=torch.float32)[:, None] * theta**-power
    cos, sin = (part[:, None].to(x_THK) for part in (angle_TK.cos(), angle_TK.sin()))
    a, b = x_THK[..., :half], x_THK[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def off(a: Tensor, b: Tensor) -> float:
    """Returns max|a - b| / max|b| in float64: the measure of every tolerance."""
    assert a.shape == b.shape, (a.shape, b.shape)
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    if not b.numel():
        return 0.0
    most = b.abs().max().item()
    return (a - b).abs().max().item() / (most if most > 0 else 1.0)


def show(what: str, value: float) -> None:
    """Prints a measured figure: `pytest -rP` shows them all."""
    print(f"{what} {value:.1e}")
