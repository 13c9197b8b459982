"""The shipped recipes of the paper's models, checked on folders of the true shapes; nothing of them is held."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path

import pytest
from PIL import Image

from tests.support.fake_llama_tokenizer import write_llama_like
from tests.test_cli import run

RECIPES = Path(__file__).parent.parent / "recipes"
BIG = sorted(p.stem for p in RECIPES.glob("*.yaml") if "quickstart" not in p.stem)
LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16"}
VICUNA = LLAMA | {"vocab_size": 32000, "max_position_embeddings": 4096}
TEXTS = {
    "vicuna-7b-v1.5": VICUNA | {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
    },
    "vicuna-13b-v1.5": VICUNA | {
        "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "intermediate_size": 13824,
    },
    "meta-llama-3-8b-instruct": LLAMA | {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256, "rope_theta": 5e5, "max_position_embeddings": 8192,
    },
    "qwen-7b-chat": {
        "model_type": "qwen", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "intermediate_size": 22016, "vocab_size": 151936, "seq_length": 8192, "layer_norm_epsilon": 1e-6,
        "no_bias": True, "kv_channels": 128, "rotary_emb_base": 10000, "bf16": True, "torch_dtype": "bfloat16",
    },
}  # fmt: skip
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "intermediate_size": 4096, "image_size": 336, "patch_size": 14, "hidden_act": "quick_gelu",
}  # fmt: skip
PARAMETERS = {"vicuna-7b-v1.5": 6_738_415_616, "vicuna-13b-v1.5": 13_015_864_320}


def header_only(folder: Path, config: dict, shapes: dict[str, tuple[int, ...]]) -> Path:
    """Makes a model folder of true names and shapes over a file of holes: gigabytes that take no room."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    data = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + at)
    return folder


def llama_shapes(c: dict) -> dict[str, tuple[int, ...]]:
    width, mlp, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    kv = width // heads * c.get("num_key_value_heads", heads)
    out = {"model.embed_tokens.weight": (c["vocab_size"], width), "lm_head.weight": (c["vocab_size"], width)}
    out["model.norm.weight"] = (width,)
    for n in range(c["num_hidden_layers"]):
        rows = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width),
                "self_attn.o_proj": (width, width), "mlp.gate_proj": (mlp, width), "mlp.up_proj": (mlp, width),
                "mlp.down_proj": (width, mlp), "input_layernorm": (width,), "post_attention_layernorm": (width,)}  # fmt: skip
        out |= {f"model.layers.{n}.{name}.weight": shape for name, shape in rows.items()}
    return out


def qwen_shapes(c: dict) -> dict[str, tuple[int, ...]]:
    width, mlp, vocab = c["hidden_size"], c["intermediate_size"] // 2, c["vocab_size"]
    out = {
        "transformer.wte.weight": (vocab, width),
        "lm_head.weight": (vocab, width),
        "transformer.ln_f.weight": (width,),
    }
    for n in range(c["num_hidden_layers"]):
        rows = {"ln_1.weight": (width,), "ln_2.weight": (width,), "attn.c_attn.weight": (3 * width, width),
                "attn.c_attn.bias": (3 * width,), "attn.c_proj.weight": (width, width), "mlp.w1.weight": (mlp, width),
                "mlp.w2.weight": (mlp, width), "mlp.c_proj.weight": (width, mlp)}  # fmt: skip
        out |= {f"transformer.h.{n}.{name}": shape for name, shape in rows.items()}
    return out


def clip_shapes() -> dict[str, tuple[int, ...]]:
    out = {"embeddings.class_embedding": (1024,), "embeddings.patch_embedding.weight": (1024, 3, 14, 14),
           "embeddings.position_embedding.weight": (577, 1024)}  # fmt: skip
    pairs = [("pre_layrnorm", (1024,)), ("post_layernorm", (1024,))]
    for n in range(24):
        at = f"encoder.layers.{n}."
        pairs += [
            (f"{at}self_attn.{name}", (1024, 1024)) for name in ("q_proj", "k_proj", "v_proj", "out_proj")
        ]
        pairs += [(f"{at}layer_norm1", (1024,)), (f"{at}layer_norm2", (1024,))]
        pairs += [(f"{at}mlp.fc1", (4096, 1024)), (f"{at}mlp.fc2", (1024, 4096))]
    for name, shape in pairs:
        out |= {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}
    return {f"vision_model.{name}": shape for name, shape in out.items()}


def byte_level(folder: Path, controls: list[str], eos: str, first: int) -> None:
    """Writes a tokenizer.json of single bytes whose control tokens have the true one's ids."""
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(alphabet)}
    vocab |= {f"none {i}": i for i in range(len(vocab), first)}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(controls)
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "bos_token": controls[0]}))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Makes the folder every recipe starts from: weights of true shapes, and records of one image."""
    root = tmp_path_factory.mktemp("data")
    for name, config in TEXTS.items():
        shapes = qwen_shapes(config) if "qwen" in name else llama_shapes(config)
        folder = header_only(root / "weights" / name, config, shapes)
        if "vicuna" in name:
            write_llama_like(folder)
    header_only(root / "weights" / "clip-vit-large-patch14-336", CLIP, clip_shapes())
    byte_level(root / "weights" / "meta-llama-3-8b-instruct",
               ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>", 128_000)  # fmt: skip
    ranks = b"\n".join(base64.b64encode(bytes([i])) + b" %d" % i for i in range(256))
    (root / "weights" / "qwen-7b-chat" / "qwen.tiktoken").write_bytes(ranks)
    hf = {"model_type": "llava", "image_token_index": 32000, "text_config": TEXTS["vicuna-7b-v1.5"] | {"vocab_size": 32064},
          "vision_config": CLIP, "vision_feature_layer": -2}  # fmt: skip
    shapes = {f"language_model.{k}": v for k, v in llama_shapes(hf["text_config"]).items()}
    shapes |= {f"vision_tower.{k}": v for k, v in clip_shapes().items()}
    for i, n in ((1, 1024), (2, 4096)):
        shapes |= {
            f"multi_modal_projector.linear_{i}.weight": (4096, n),
            f"multi_modal_projector.linear_{i}.bias": (4096,),
        }
    write_llama_like(header_only(root / "weights" / "llava-1.5-7b-hf", hf, shapes))
    (root / "images").mkdir()
    Image.new("RGB", (40, 30)).save(root / "images" / "a.png")
    write_rows(root, 700, 500)
    return root


def write_rows(root: Path, captions: int, talks: int) -> None:
    for name, image, count in (("blip_laion_cc_sbu_558k", "a.png", captions), ("llava_v1_5_mix665k", "images/a.png", talks),
                               ("mine", "images/a.png", 300)):  # fmt: skip
        row = {"image": image, "conversations": [
            {"from": "human", "value": "<image>\nwhat is this"}, {"from": "gpt", "value": "a red circle on a mat"},
        ]}  # fmt: skip
        with open(root / f"{name}.json", "w") as file:
            file.write("[" + ",\n".join(json.dumps({"id": str(i)} | row) for i in range(count)) + "]")


CHECKED: dict[str, dict] = {}  # a check takes seconds; some are looked at twice


def checked(data: Path, name: str) -> dict:
    """Returns what `lmmkit check` reports about a recipe's stages."""
    if name not in CHECKED:
        CHECKED[name] = json.loads(run("check", name, "--root", data, "--json"))["stages"]
    return CHECKED[name]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if "7b" in name and "qwen" not in name else [pytest.mark.slow])
        for name in BIG
    ],
)
def test_a_recipe_checks_on_the_true_shapes(name, data):
    stages = checked(data, name)
    steps = [stages[s]["steps"] for s in stages]
    assert steps == ([3] if name == "finetune-task" else [3, 4])
    if name.startswith("llava-1.5"):
        seven = "-7b" in name
        projector, lora = (20_979_712, 319_815_680) if seven else (31_467_520, 500_695_040)
        whole = PARAMETERS["vicuna-7b-v1.5" if seven else "vicuna-13b-v1.5"]
        assert stages["pretrain"]["trainable"] == projector
        assert stages["finetune"]["trainable"] == projector + (lora if "lora" in name else whole)


def test_low_rank_updates_of_7b_fit_a_card_of_24_gb(data):
    for stage in checked(data, "llava-1.5-7b-lora-24gb").values():
        held = stage["bytes"]
        assert 2 * 6.7e9 < held["weights"] < 16e9, "the base in bfloat16"
        assert 1.1 * held["all"] < 24e9, "a tenth for kernels and the allocator"
    assert held["optimizer"] == pytest.approx(2 * stage["trainable"], rel=0.02)


STEPS = {"pretrain": 2_181, "finetune": 5_198}


def write_lifelike(root: Path) -> None:
    """Writes whole steps of captions and conversations, each with an image that no other has."""
    for i in range(768):
        Image.new("RGB", (40, 30), (i % 256, i // 3, 9)).save(root / "images" / f"{i}.png")
    talks = [("blip_laion_cc_sbu_558k", "", "a red cat on a mat here", 768), ("llava_v1_5_mix665k", "images/", "word " * 50, 512)]  # fmt: skip
    for name, at, answer, count in talks:
        rows = [
            {"id": str(i), "image": f"{at}{i}.png", "conversations": [
                {"from": "human", "value": "<image>\nWhat is there to be seen?"}, {"from": "gpt", "value": answer},
            ]}
            for i in range(count)
        ]  # fmt: skip
        (root / f"{name}.json").write_text(json.dumps(rows))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BIG if name != "finetune-task"])
def test_the_table_of_the_docs_is_what_check_says(name, data):
    write_lifelike(data)
    found = json.loads(run("check", name, "--root", data, "--json"))["stages"]
    write_rows(data, 700, 500)
    docs, missing = (RECIPES.parent / "docs" / "recipes.md").read_text(), []
    for stage, e in found.items():
        sizes = [f"{n / 2**30:.1f}" for n in e["bytes"].values()]
        rows = e["tokens_per_step"] / (256 if stage == "pretrain" else 128)
        hours = e["hours"] / e["steps"] * STEPS[stage]
        row = f"| {name} | {stage} | {e['devices']} | {rows:,.0f} | {' | '.join(sizes)} | {hours:.1f} |"
        print(row)
        missing += [row] if row not in docs else []
    assert not missing


@pytest.mark.slow
def test_the_published_numbers_of_steps(data, tmp_path):
    write_rows(data, 558_128, 665_298)
    found = json.loads(run("check", "direct-llava-7b", "--root", data, "--json"))["stages"]
    write_rows(data, 700, 500)
    assert [found[stage]["steps"] for stage in ("pretrain", "finetune")] == [2_181, 5_198]
