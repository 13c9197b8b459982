"""Model folders that would be run, lead out of their folder, or take the machine along."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.support.hostile_home import Artefact, Home

CHAT = ["chat", "hf", "--prompt", "x", "--max-new-tokens", "1"]
CHAT_RUN = ["chat", "run", "--prompt", "x", "--max-new-tokens", "1"]
SHOW = ["model", "show", "hf"]
IMPORT = ["model", "import", "hf", "out"]
PICKLED = [*IMPORT, "--allow-pickle"]
Spoil = Callable[[Home], list[object]]


def artefacts() -> Iterator[Artefact]:
    """Yields all of them."""
    for name, changes in CONFIGS.items():
        for words in (SHOW, CHAT):
            yield Artefact(f"model config {name}, {words[0]}", _config(changes, words), code=(0, 2))
    for name, text in TEXTS.items():
        yield Artefact(f"model config {name}", _written("config.json", text, CHAT))
    for name, target in NAMES.items():
        yield Artefact(f"model shard {name}", _shard(target), says="hf/")
    for name, make in HEADERS.items():
        yield Artefact(f"model header {name}", _header(make), says="/hf")
    for name, make in PICKLES.items():
        yield Artefact(f"model pickle {name}, not allowed", _pickle(make, IMPORT), says="weights/pickle")
        yield Artefact(f"model pickle {name}, allowed", _pickle(make, PICKLED), says="pytorch_model.bin")
    for name, (file, changes) in BESIDE.items():
        yield Artefact(f"model beside {name}", _json(file, changes), code=(0, 2))
    for name, changes in ADAPTERS.items():
        yield Artefact(f"adapter {name}", _adapter(changes), says="adapter_config.json")
    for name, changes in TIMM.items():
        yield Artefact(f"timm folder {name}", _timm(changes))
    yield from OTHERS


class Payload:
    """What unpickling turns into a call."""

    def __init__(self, call: Callable, *words: object) -> None:
        self.call, self.words = call, words

    def __reduce__(self) -> tuple:
        return self.call, self.words


# ------------------------------------------------------------------ configs

HUGE = 2**62
CONFIGS: dict[str, dict[str, object]] = {
    "auto_map": {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}},
    "a class of its own": {"architectures": ["evil.Evil"], "custom_pipelines": {"x": {"impl": "evil.Evil"}}},
    "trust_remote_code": {"trust_remote_code": True},
    "code to quantize": {"quantization_config": {"quant_method": "evil", "modules_to_not_convert": ["x"]}},
    "an attention kernel": {
        "_attn_implementation": "evil/kernel",
        "_attn_implementation_internal": "evil/kernel",
    },
    "a name elsewhere": {"_name_or_path": "../../outside", "vision_tower": "http://127.0.0.1:9/x"},
    "absurd depth": {"text_config.num_hidden_layers": HUGE},
    "large depth": {"text_config.num_hidden_layers": 900},
    "absurd width": {"text_config.hidden_size": HUGE},
    "large width": {"text_config.hidden_size": 2**20, "text_config.num_attention_heads": 2**10},
    "absurd vocabulary": {"text_config.vocab_size": HUGE},
    "large vocabulary": {"text_config.vocab_size": 2**24},
    "absurd context": {"text_config.max_position_embeddings": HUGE},
    "large context": {"text_config.max_position_embeddings": 2**24},
    "absurd image size": {"vision_config.image_size": HUGE},
    "large image size": {"vision_config.image_size": 2**20},
    "absurd patch": {"vision_config.patch_size": HUGE},
    "large mlp": {"text_config.intermediate_size": 2**24},
    "negative sizes": {"text_config.hidden_size": -8},
    "sizes that are text": {"text_config.hidden_size": "__import__('os').system('true')"},
    "sections that are lists": {"text_config": [], "vision_config": []},
    "heads of none": {"text_config.num_attention_heads": 0},
    "rotary junk": {"text_config.rope_parameters": {"rope_type": "evil", "factor": 1e308, "rope_theta": 0}},
    "an image token far away": {"image_token_id": HUGE, "image_token_index": HUGE},
    "a layer far away": {"vision_feature_layer": -(10**9)},
    "eos junk": {"eos_token_id": [HUGE] * 1000},
}
TEXTS: dict[str, bytes] = {
    "a pickle": b"cos\nsystem\n(S'true'\ntR.",
    "deep": b'{"a":' * 100_000,
    "no object": b"[]",
    "a huge number": b'{"model_type": "llama", "hidden_size": ' + b"9" * 100_000 + b"}",
    "no UTF-8": b"\xff\xfe{}",
    "empty": b"",
    "infinity": b'{"model_type": "llama", "hidden_size": Infinity, "num_attention_heads": NaN}',
}


def _config(changes: dict[str, object], words: list[object]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        folder = home.with_("hf")
        for name in ("evil.py", "modeling_llava.py", "__init__.py", "configuration_llava.py"):
            (folder / name).write_text(home.python)
        _change(folder / "config.json", changes)
        return words

    return spoil


def _change(path: Path, changes: dict[str, object]) -> None:
    value = json.loads(path.read_text()) if path.is_file() else {}
    for key, new in changes.items():
        *above, last = key.split(".")
        at = value
        for step in above:
            at = at[step]
        at[last] = new
    path.write_text(json.dumps(value))


def _written(file: str, content: bytes, words: list[object]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        (home.with_("hf") / file).write_bytes(content)
        return words

    return spoil


def _json(file: str, changes: dict[str, object]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        filled = json.loads(json.dumps(changes).replace("SHELL", home.shell))
        folder = home.with_("hf")
        (folder / "evil.py").write_text(home.python)
        if file.endswith(".jinja"):
            (folder / file).write_text(filled["text"])
        else:
            _change(folder / file, filled)
        return CHAT

    return spoil


JINJA = "{{ cycler.__init__.__globals__.os.popen('SHELL').read() }}{% for x in range(10**12) %}{% endfor %}"
BESIDE: dict[str, tuple[str, dict[str, object]]] = {
    "a template": ("chat_template.jinja", {"text": JINJA}),
    "a template in the tokenizer's config": ("tokenizer_config.json", {"chat_template": JINJA, "auto_map": {"AutoTokenizer": "evil.Evil"}}),
    "a template in a file of its own": ("chat_template.json", {"chat_template": JINJA}),
    "code in the processor": ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "evil.Evil"}, "image_processor_type": "evil.Evil"}),
    "sizes in the processor": ("preprocessor_config.json", {"size": {"shortest_edge": HUGE}, "crop_size": {"height": HUGE, "width": HUGE}}),
    "junk in the processor": ("preprocessor_config.json", {"image_mean": "x", "image_std": [0, 0, 0], "resample": "evil"}),
    "code in generation": ("generation_config.json", {"custom_generate": "evil.py", "eos_token_id": {"a": 1}}),
    "endless generation": ("generation_config.json", {"max_new_tokens": HUGE, "eos_token_id": []}),
}  # fmt: skip


# ------------------------------------------------------------------ weights

NAMES = {
    "up": "../outside/secret.txt",
    "absolute": "/etc/hostname",
    "hidden": ".hidden.safetensors",
    "a folder": "x/y.safetensors",
    "backslashes": "..\\x.safetensors",
    "a URL": "http://127.0.0.1:9/x.safetensors",
    "NUL": "x\0.safetensors",
    "a device": "/dev/zero",
    "dots": "..",
    "a pipe": "pipe.safetensors",
    "of Python": "evil.py",
    "with a newline": "model.safetensors\n",
    "that is not there": "model-00001-of-99999.safetensors",
}


def _shard(target: str) -> Spoil:
    def spoil(home: Home) -> list[object]:
        folder = home.with_("hf")
        (folder / "evil.py").write_text(home.python)
        os.mkfifo(folder / "pipe.safetensors")
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"lm_head.weight": target}})
        )
        return IMPORT

    return spoil


def raw(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    """Returns a safetensors file of that header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def _one(**changes: object) -> bytes:
    return raw(
        {"lm_head.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}, bytes(16)
    )


HEADERS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "of eight bytes": lambda: bytes(8),
    "of a size beyond the file": lambda: raw(b"{}", size=2**63),
    "of a size below zero": lambda: b"\xff" * 8 + b"{}",
    "of 99 million bytes that are not there": lambda: raw(b"{}", size=99 << 20),
    "deep": lambda: raw(b'{"a":' * 100_000),
    "a list": lambda: raw([]),
    "no JSON": lambda: raw(b"\xff" * 100),
    "a pickle": lambda: b"cos\nsystem\n(S'true'\ntR.",
    "a zip": lambda: b"PK\x03\x04" + bytes(1000),
    "an offset beyond": lambda: _one(data_offsets=[0, 2**40]),
    "an offset below": lambda: _one(data_offsets=[-16, 0]),
    "offsets turned round": lambda: _one(data_offsets=[16, 0]),
    "a shape beyond": lambda: _one(shape=[2**62, 2**62]),
    "a shape below": lambda: _one(shape=[-4]),
    "a shape of text": lambda: _one(shape=["4"]),
    "no shape": lambda: raw({"lm_head.weight": {}}),
    "an unknown type": lambda: _one(dtype="PICKLE"),
    "offsets of text": lambda: _one(data_offsets="0:16"),
    "overlapping": lambda: raw({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in "ab"}, bytes(16)),
    "a hole": lambda: raw({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}}, bytes(32)),
    "a huge number": lambda: raw(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 10_000 + b'], "data_offsets": [0, 0]}}'),
    "names that climb": lambda: raw({"../../x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(16)),
    "a million names": lambda: raw({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}),
}  # fmt: skip


def _header(make: Callable[[], bytes]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        (home.with_("hf") / "model.safetensors").write_bytes(make())
        return CHAT

    return spoil


PICKLES: dict[str, Callable[[Home], object]] = {
    "os.system": lambda home: {"lm_head.weight": Payload(os.system, home.shell)},
    "exec": lambda home: {"lm_head.weight": Payload(exec, home.python)},
    "eval": lambda home: Payload(eval, home.python),
    "open": lambda home: {"a": Payload(open, str(home.outside / "touched"), "w")},
    "a module": lambda home: {"a": Payload(__import__, "antigravity")},
    "getattr": lambda home: {"a": Payload(getattr, "x", "__class__")},
    "a nested pickle": lambda home: {
        "a": Payload(pickle.loads, pickle.dumps(Payload(os.system, home.shell)))
    },
    "no tensors": lambda home: {"a": "b"},
    "a list": lambda home: [1, 2, 3],
}


def _pickle(make: Callable[[Home], object], words: list[object]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        folder = home.with_("hf")
        (folder / "model.safetensors").unlink()
        torch.save(make(home), folder / "pytorch_model.bin")
        return words

    return spoil


def _old_pickle(home: Home) -> list[object]:
    folder = home.with_("hf")
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Payload(os.system, home.shell), file)
    return PICKLED


# ------------------------------------------------------------------ adapters, timm, ours

ADAPTERS: dict[str, dict[str, object]] = {
    "absurd rank": {"r": HUGE},
    "rank of none": {"r": 0},
    "code": {"r": "__import__('os').system('true')", "auto_mapping": {"parent_library": "evil", "base_model_class": "evil.E"}},
    "another kind": {"use_dora": True},
    "endless scale": {"lora_alpha": float("inf")},
}  # fmt: skip


def _adapter(changes: dict[str, object]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        folder, base = home.with_("peft"), home.with_("hf")
        _change(folder / "adapter_config.json", changes)
        # LLaVA's own low-rank folders say what they are of
        config = json.loads((base / "config.json").read_text())["text_config"]
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
        tensors = load_file(folder / "adapter_model.safetensors")
        kept = {n.replace("language_model.", ""): t for n, t in tensors.items() if "lora_" in n}
        save_file(kept, folder / "adapter_model.safetensors")
        return ["model", "import", "peft", "out", "--base", "hf"]

    return spoil


TIMM: dict[str, dict[str, object]] = {
    "of a hub": {"architecture": "hf-hub:evil/repo"},
    "of a folder": {"architecture": "local-dir:../outside"},
    "with a URL": {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"url": "http://127.0.0.1:9/x.bin", "file": "../outside/secret.txt", "hf_hub_id": "evil/repo", "custom_load": True}},
    "pretrained": {"architecture": "vit_tiny_patch16_224", "model_args": {"pretrained": True}},
    "with a checkpoint": {"architecture": "vit_tiny_patch16_224", "model_args": {"checkpoint_path": "../outside/secret.txt"}},
    "with a class": {"architecture": "vit_tiny_patch16_224", "model_args": {"norm_layer": "os.system"}},
    "of absurd size": {"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": 2**40}},
    "of absurd depth": {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 10**8}},
    "of an absurd image size": {"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": 2**40}},
    "of no architecture": {"architecture": "__import__('os').system('true')"},
}  # fmt: skip


def _timm(changes: dict[str, object]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        folder = home.path / "encoder"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(changes))
        (folder / "model.safetensors").write_bytes(_one())
        return ["model", "import", "encoder", "out"]

    return spoil


def _own(file: str, changes: dict[str, object], words: list[object]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        _change(home.with_("run") / "model" / "learn" / file, changes)
        return words

    return spoil


def _own_plugin(home: Home) -> list[object]:
    """Makes a model folder of ours whose recipe would run a file beside it."""
    folder = home.with_("run") / "model" / "learn"
    (home.path / "evil.py").write_text(home.python)
    (folder / "evil.py").write_text(home.python)
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(recipe.replace("plugins: {}", "plugins:\n  evil: {use: ./evil.py}"))
    _change(folder / "config.json", {"inference_plugins": ["evil"], "root": str(folder)})
    return ["chat", "run", "--prompt", "x"]


def _export_link(home: Home) -> list[object]:
    folder = home.with_("run") / "model" / "learn"
    (folder / "notes.txt").symlink_to(home.outside / "secret.txt")
    return ["model", "export", "run/model/learn", "out", "--format", "lmmkit"]


def _fifo(file: str, words: list[object]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        folder = home.with_("hf")
        (folder / file).unlink(missing_ok=True)
        os.mkfifo(folder / file)
        return words

    return spoil


def _own_pipe(home: Home) -> list[object]:
    weights = home.with_("run") / "model" / "learn" / "model.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    return CHAT_RUN


def _destination_link(home: Home) -> list[object]:
    """DST is a link out, to a folder that is not there."""
    home.with_("hf")
    (home.path / "out").symlink_to(home.outside / "new")
    return IMPORT


def _twice(home: Home) -> list[object]:
    folder = home.with_("hf")
    shutil.copy(folder / "model.safetensors", folder / "b.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    return IMPORT


OTHERS = (
    Artefact("model pickle as it was before zip", _old_pickle, says="pytorch_model.bin"),
    Artefact("model with one tensor in two files", _twice, says="weights/tensor-twice"),
    Artefact("model config a pipe", _fifo("config.json", SHOW)),
    Artefact("model weights a pipe", _fifo("model.safetensors", CHAT)),
    Artefact("model tokenizer a pipe", _fifo("tokenizer.model", CHAT)),
    Artefact("model processor a pipe", _fifo("preprocessor_config.json", CHAT), code=(0, 2)),
    Artefact("model of ours with a local plugin", _own_plugin, says="plugin/untrusted-file"),
    Artefact("model of ours with a link", _export_link, says="convert/link"),
    Artefact("model of ours, stage elsewhere", _own("config.json", {"stage": "../../outside"}, CHAT_RUN)),
    Artefact("model of ours, absurd sizes", _own("config.json", {"model": {"text": {"width": HUGE}}}, ["model", "show", "run"]), code=(0, 2)),
    Artefact("model of ours, root elsewhere", _own("config.json", {"root": "/"}, CHAT_RUN), code=(0, 2)),
    Artefact("model of ours, root no text", _own("config.json", {"root": 5}, CHAT_RUN)),
    Artefact("model of ours, junk", _own("config.json", {"inference_plugins": ["os.system"], "eos": [HUGE], "image_token": -1}, CHAT_RUN)),
    Artefact("model import through a link", _destination_link, says="convert/exists"),
    Artefact("model of ours, weights a pipe", _own_pipe),
)  # fmt: skip
