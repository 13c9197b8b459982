"""Public decoders: recipe sections from their configs, and tables that map tensor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from lmmkit.errors import UserError
from lmmkit.errors.weights import ARCHITECTURE
from lmmkit.recipe import RopeScaling, TextScratch
from lmmkit.weights.config import BLOCKS, Config
from lmmkit.weights.name_maps import Table

LLAMA: Table = (
    ("embed.weight", "model.embed_tokens.weight"),
    ("blocks.{n}.attention_norm.weight", "model.layers.{n}.input_layernorm.weight"),
    ("blocks.{n}.attention.qkv.weight[q]", "model.layers.{n}.self_attn.q_proj.weight"),
    ("blocks.{n}.attention.qkv.weight[k]", "model.layers.{n}.self_attn.k_proj.weight"),
    ("blocks.{n}.attention.qkv.weight[v]", "model.layers.{n}.self_attn.v_proj.weight"),
    ("blocks.{n}.attention.qkv.bias[q]", "model.layers.{n}.self_attn.q_proj.bias"),
    ("blocks.{n}.attention.qkv.bias[k]", "model.layers.{n}.self_attn.k_proj.bias"),
    ("blocks.{n}.attention.qkv.bias[v]", "model.layers.{n}.self_attn.v_proj.bias"),
    ("blocks.{n}.attention.norm.q.weight", "model.layers.{n}.self_attn.q_norm.weight"),
    ("blocks.{n}.attention.norm.k.weight", "model.layers.{n}.self_attn.k_norm.weight"),
    ("blocks.{n}.attention.out.weight", "model.layers.{n}.self_attn.o_proj.weight"),
    ("blocks.{n}.mlp_norm.weight", "model.layers.{n}.post_attention_layernorm.weight"),
    ("blocks.{n}.mlp.gate_up.weight[gate]", "model.layers.{n}.mlp.gate_proj.weight"),
    ("blocks.{n}.mlp.gate_up.weight[up]", "model.layers.{n}.mlp.up_proj.weight"),
    ("blocks.{n}.mlp.down.weight", "model.layers.{n}.mlp.down_proj.weight"),
    ("norm.weight", "model.norm.weight"),
    ("head.weight", "lm_head.weight"),
)
# The first Qwen-7B: one matrix for q, k and v; names in the style of GPT-2.
QWEN1: Table = (
    ("embed.weight", "transformer.wte.weight"),
    ("blocks.{n}.attention_norm.weight", "transformer.h.{n}.ln_1.weight"),
    ("blocks.{n}.attention.qkv.weight", "transformer.h.{n}.attn.c_attn.weight"),
    ("blocks.{n}.attention.qkv.bias", "transformer.h.{n}.attn.c_attn.bias"),
    ("blocks.{n}.attention.out.weight", "transformer.h.{n}.attn.c_proj.weight"),
    ("blocks.{n}.mlp_norm.weight", "transformer.h.{n}.ln_2.weight"),
    ("blocks.{n}.mlp.gate_up.weight[gate]", "transformer.h.{n}.mlp.w2.weight"),
    ("blocks.{n}.mlp.gate_up.weight[up]", "transformer.h.{n}.mlp.w1.weight"),
    ("blocks.{n}.mlp.down.weight", "transformer.h.{n}.mlp.c_proj.weight"),
    ("norm.weight", "transformer.ln_f.weight"),
    ("head.weight", "lm_head.weight"),
)
# Keys of a public `rope_scaling` by the field of `RopeScaling`, for each kind. An export writes them back.
ROPE_KEYS: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor", "original": "original_max_position_embeddings",
        "low": "low_freq_factor", "high": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor", "original": "original_max_position_embeddings",
        "fast": "beta_fast", "slow": "beta_slow", "magnitude": "attention_factor",
    },
    "dynamic": {"factor": "factor"},  # and `original`, which is the config's max_position_embeddings
}  # fmt: skip
WINDOW = 4096  # of a Mistral config without `sliding_window`; null means none
# Frequency tables, which old folders contain, and the head of a tied model, which equals its embedding.
SPARE_DECODER = r"rotary_emb|\.attn\.bias$|masked_bias$|^lm_head\.weight$"


@dataclass(frozen=True, kw_only=True)
class DecoderSource:
    """Describes a decoder from its config: recipe section, table of tensor names, and family. `left_out`: what
    neither the section nor an export of it has, with the consequence."""

    section: TextScratch
    table: Table
    family: str
    left_out: tuple[str, ...] = ()


def read_decoder(config: Config) -> DecoderSource:
    """Reads the decoder from a config (or from its `text_config`).

    Raises `UserError` for an unknown family, and for settings that lmmkit does not support.
    """
    family = config.text("model_type")
    if family not in DECODERS:
        known = ", ".join(sorted(DECODERS))
        raise UserError(ARCHITECTURE.at(config.where, got=f"model_type {family!r}", known=known))
    return DECODERS[family](config)


def _llama(config: Config) -> DecoderSource:
    config.only(attention_bias=False, mlp_bias=False, pretraining_tp=1)
    return _source(config)


def _mistral(config: Config) -> DecoderSource:
    return _windowed(_source(config), Config({"sliding_window": WINDOW, **config.values}, config.where))


def _qwen2(config: Config) -> DecoderSource:
    source = _source(config, qkv_bias=True, max_positions=32768)
    return _windowed(source, config) if config.flag("use_sliding_window", False) else source


def _qwen3(config: Config) -> DecoderSource:
    config.only(attention_bias=False)
    source = _source(config, qk_norm=True, head_size=128, max_positions=32768)
    return _windowed(source, config) if config.flag("use_sliding_window", False) else source


def _qwen1(config: Config) -> DecoderSource:
    config.only(no_bias=True, scale_attn_weights=True, rotary_pct=1.0)
    width, heads = config.count("hidden_size"), config.count("num_attention_heads")
    size = config.count("kv_channels", width // heads)
    section = TextScratch(
        vocab=config.count("vocab_size"), width=width, heads=heads,
        depth=config.count("num_hidden_layers", most=BLOCKS),
        kv_heads=heads, head_size=size, mlp=config.count("intermediate_size") // 2,
        context=config.count("seq_length", 8192),  # log-n scaling and dynamic NTK apply only above it
        rope_theta=config.number("rotary_emb_base", 1e4),
        norm_eps=config.number("layer_norm_epsilon", 1e-6), qkv_bias=True,
        tied=config.flag("tie_word_embeddings", False),
    )  # fmt: skip
    longer = [key for key in ("use_dynamic_ntk", "use_logn_attn") if config.flag(key, False)]
    left_out = [f"{', '.join(longer)}: no effect up to the context; exports leave it out"] if longer else []
    return DecoderSource(section=section, table=QWEN1, family="qwen", left_out=tuple(left_out))


DECODERS: dict[str, Callable[[Config], DecoderSource]] = {
    "llama": _llama, "mistral": _mistral, "qwen2": _qwen2, "qwen3": _qwen3, "qwen": _qwen1,
}  # fmt: skip


def _source(
    config: Config, *, qkv_bias: bool = False, qk_norm: bool = False, head_size: int | None = None,
    max_positions: int = 4096,
) -> DecoderSource:  # fmt: skip
    config.one_of("hidden_act", {"silu": "silu"}, "silu")
    config.only(partial_rotary_factor=1.0)
    width, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads = config.count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.problem("num_key_value_heads", kv_heads, f"a divisor of {heads} heads")
    size = config.count("head_dim", head_size or width // heads)
    if size % 2:
        raise config.problem("head_dim", size, "an even number")
    context = config.count("max_position_embeddings", max_positions)
    theta, scaling = _rope(config, context)
    section = TextScratch(
        vocab=config.count("vocab_size"), width=width, heads=heads,
        depth=config.count("num_hidden_layers", most=BLOCKS),
        kv_heads=kv_heads, head_size=size, mlp=config.count("intermediate_size"), context=context,
        rope_theta=theta, rope_scaling=scaling, norm_eps=config.number("rms_norm_eps", 1e-6),
        qkv_bias=qkv_bias, qk_norm=qk_norm, tied=config.flag("tie_word_embeddings", False),
    )  # fmt: skip
    left_out = ()
    if dropout := config.values.get("attention_dropout"):
        left_out = (f"attention_dropout {dropout}: not applied in training; exports leave it out",)
    return DecoderSource(section=section, table=LLAMA, family=config.text("model_type"), left_out=left_out)


def _windowed(source: DecoderSource, config: Config) -> DecoderSource:
    """Limits the context to the sliding window. Up to that length, the window has no effect."""
    if not config.has("sliding_window"):
        return source
    window = config.count("sliding_window")
    if window >= source.section.context:
        return source
    left_out = (*source.left_out, f"sliding_window {window}: the context ends there; exports have no window")
    return replace(source, section=replace(source.section, context=window), left_out=left_out)


def _rope(config: Config, context: int) -> tuple[float, RopeScaling | None]:
    """Reads RoPE from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    Returns its base and its scaling.
    """
    now, old = config.section("rope_parameters"), config.section("rope_scaling")
    scaling = now if now.values else old
    theta = now.number("rope_theta", config.values.get("rope_theta", 1e4))
    if not scaling.values:
        return theta, None
    scaling.only(partial_rotary_factor=1.0, mrope_section=None)
    if kinds := [key for key, value in scaling.values.items() if isinstance(value, Mapping)]:
        raise scaling.lacking(kinds[0], scaling.values[kinds[0]], "the same rotary positions in every layer")
    known = {"default": "none", **{kind: kind for kind in ROPE_KEYS}}
    kind = scaling.one_of("rope_type" if scaling.has("rope_type") else "type", known, "default")
    if kind == "none":
        return theta, None
    given: dict[str, Any] = {}
    if kind == "yarn":
        scaling.only(mscale=None, mscale_all_dim=None, truncate=True)
    if kind in ("yarn", "dynamic"):
        given["original"] = context
    for field, key in ROPE_KEYS[kind].items():
        if kind != "yarn" or field == "factor" or scaling.has(key):  # only yarn has defaults
            given[field] = scaling.count(key) if field == "original" else scaling.number(key)
    if kind == "llama3" and given["high"] <= given["low"]:
        raise scaling.problem("high_freq_factor", given["high"], f"more than low_freq_factor {given['low']}")
    if kind == "yarn" and theta <= 1:
        raise scaling.problem("rope_theta", theta, "more than 1")
    return theta, RopeScaling(kind=cast(Any, kind), **given)
