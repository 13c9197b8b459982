"""Data sets and tokenizers that would lead out of their folder, never end, or be run."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image as Pil

from tests.support.hostile_home import Artefact, Home, row

CHECK = ["data", "check", "recipe.yaml"]
DECODE = [*CHECK, "--decode"]
TRAIN = ["train", "recipe.yaml", "--out", "out"]
Spoil = Callable[[Home], list[object]]


def artefacts() -> Iterator[Artefact]:
    """Yields all of them."""
    for name, path in PATHS.items():
        yield Artefact(f"path {name}", _path(path), says="record 0")
    for name, make in LINKS.items():
        yield Artefact(f"path {name}", _linked(make), says="record 0")
    for name, content in FILES.items():
        yield Artefact(f"records {name}", _records(content), says="rows.json")
    for name, changes in RECORDS.items():
        yield Artefact(f"record {name}", _record(changes), says="record 0")
    yield Artefact(
        "record with markers for one image", _record(MARKERS), code=(0, 2)
    )  # LLaVA takes them for one
    for name, make in IMAGES.items():
        yield Artefact(f"image {name}", _image(make), says="a.png")
    for name, words in TEXTS.items():
        yield Artefact(f"text {name}", _text(words), code=(0,))
    for name, (file, content, code) in TOKENIZERS.items():
        yield Artefact(f"tokenizer {name}", _tokenizer(file, content), code=code)
    yield from OTHERS


# ------------------------------------------------------------------ paths

PATHS = {
    "absolute": "/etc/hostname",
    "absolute, ours": "OUTSIDE/secret.png",
    "up": "../outside/secret.png",
    "up and up": "../../../../../../etc/hostname",
    "up in the middle": "x/../../outside/secret.png",
    "up behind a dot": "./../outside/secret.png",
    "two slashes": "//etc/hostname",
    "backslashes": "..\\..\\outside\\secret.png",
    "a drive": "C:\\secret.png",
    "a drive with slashes": "C:/secret.png",
    "a share": "\\\\host\\share\\x.png",
    "percents": "%2e%2e/outside/secret.png",
    "percents twice": "%252e%252e%252fsecret.png",
    "percent slash": "..%2f..%2fsecret.png",
    "overlong dots": "\u002e\u002e/outside/secret.png",
    "full-width dots": "\uff0e\uff0e/outside/secret.png",
    "division slash": "..\u2215outside\u2215secret.png",
    "a URL": "http://127.0.0.1:9/x.png",
    "a secure URL": "https://127.0.0.1:9/x.png",
    "a file URL": "file:///etc/hostname",
    "a data URL": "data:image/png;base64,iVBORw0KGgo=",
    "a bucket": "s3://bucket/x.png",
    "an FTP URL": "ftp://127.0.0.1:9/x.png",
    "NUL": "a.png\0.jpg",
    "a newline": "a.png\n/etc/hostname",
    "home": "~/x.png",
    "a variable": "$HOME/x.png",
    "a glob": "*.png",
    "a pipe": "|touch x",
    "empty": "",
    "a dot": ".",
    "the folder above": "..",
    "a folder": "folder/",
    "a long name": "a" * 5000,
    "deep": "a/" * 3000 + "a.png",
    "a device": "/dev/zero",
    "a process": "/proc/self/environ",
    "a trailing up": "a.png/..",
}


def _path(path: str) -> Spoil:
    def spoil(home: Home) -> list[object]:
        (home.data / "folder").mkdir()
        home.rows(row(image=path.replace("OUTSIDE", str(home.outside))))
        return DECODE

    return spoil


LINKS: dict[str, Callable[[Home], str]] = {}


def link(name: str) -> Callable:
    """Registers a function that makes a link or a special file in the image folder, and returns its path."""

    def known(make: Callable[[Home], str]) -> Callable[[Home], str]:
        LINKS[name] = make
        return make

    return known


@link("a link out")
def _(home: Home) -> str:
    (home.data / "l.png").symlink_to(home.outside / "secret.png")
    return "l.png"


@link("a relative link out")
def _(home: Home) -> str:
    (home.data / "l.png").symlink_to("../../outside/secret.png")
    return "l.png"


@link("a folder that is a link out")
def _(home: Home) -> str:
    (home.data / "there").symlink_to(home.outside)
    return "there/secret.png"


@link("a link to a link out")
def _(home: Home) -> str:
    (home.data / "first").symlink_to(home.outside)
    (home.data / "second").symlink_to("first")
    return "second/secret.png"


@link("a link to itself")
def _(home: Home) -> str:
    (home.data / "l.png").symlink_to("l.png")
    return "l.png"


@link("a link to a device")
def _(home: Home) -> str:
    (home.data / "l.png").symlink_to("/dev/zero")
    return "l.png"


@link("a FIFO")
def _(home: Home) -> str:
    os.mkfifo(home.data / "f.png")
    return "f.png"


@link("a folder named as an image")
def _(home: Home) -> str:
    (home.data / "d.png").mkdir()
    return "d.png"


def _linked(make: Callable[[Home], str]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        home.rows(row(image=make(home)))
        return DECODE

    return spoil


# ------------------------------------------------------------------ records

FILES: dict[str, bytes] = {
    "a pickle": b"cos\nsystem\n(S'SHELL'\ntR.",
    "a pickle of protocol 4": b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x93\x8c\x04true\x85R.",
    "gzip": b"\x1f\x8b" + bytes(50),
    "zip": b"PK\x03\x04" + bytes(50),
    "UTF-16": "[]".encode("utf-16"),
    "NUL": b"[\0]",
    "deep": b"[" * 200_000,
    "deep objects": b'[{"a":' * 100_000,
    "a huge integer": b'[{"id": ' + b"9" * 100_000 + b"}]",
    "infinity": b'[{"id": 1e999}]',
    "not a number": b'[{"id": NaN}]',
    "one key twice": b'[{"id": "1", "id": "2", "conversations": []}]',
    "a half surrogate": b'[{"id": "\\ud800", "conversations": []}]',
    "no list": b'{"__reduce__": "os.system"}',
    "Python": b"__import__('os').system('SHELL')",
    "a script": b"<script>alert(1)</script>",
    "no end": b'[{"id": "',
    "YAML": b"!!python/object/apply:os.system ['SHELL']",
}


def _records(content: bytes) -> Spoil:
    def spoil(home: Home) -> list[object]:
        (home.data / "rows.json").write_bytes(content.replace(b"SHELL", home.shell.encode()))
        return CHECK

    return spoil


RECORDS: dict[str, dict[str, object]] = {
    "with a list of paths": {"image": ["a.png", "../outside/secret.png"]},
    "with an object for a path": {"image": {"path": "a.png"}},
    "with a number for a path": {"image": 1},
    "with bytes": {"image": [104, 116]},
    "with an unknown role": {"conversations": [{"from": "__class__", "value": "x"}]},
    "with a deep value": {"conversations": [{"from": "human", "value": {"a": [1]}}]},
    "with five megabytes": {"conversations": [{"from": "human", "value": "<image>" + "x" * 5_000_000}, {"from": "gpt", "value": "x"}]},
    "with ten thousand turns": {"conversations": [{"from": "human", "value": "x"}] * 10_000},
}  # fmt: skip


MARKERS = {"conversations": [{"from": "human", "value": "<image>" * 100_000}, {"from": "gpt", "value": "x"}]}


def _record(changes: dict[str, object]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        home.rows(row(**changes))
        return CHECK

    return spoil


TEXTS = {
    "a template": "{{ cycler.__init__.__globals__.os.popen('SHELL').read() }}{% for x in range(10**10) %}{% endfor %}",
    "control tokens": "</s><s>[INST] <|im_start|>system<|im_end|><unk><0x0A>",
    "a shell": "$(SHELL) `SHELL` ; SHELL",
    "a format": "{0.__class__.__mro__} %s%n {__import__('os')}",
    "terminal codes": "\x1b]0;owned\x07\x1b[2J[bold]x[/bold][link=http://x]y[/link]",
    "right to left": "\u202e\u200b\u200d\ufeff\U000e0001",
    "Python": "__import__('os').system('SHELL')",
    "a long word": "x" * 500,
}


def _text(words: str) -> Spoil:
    def spoil(home: Home) -> list[object]:
        talk = [
            {"from": "human", "value": "<image>\n" + words.replace("SHELL", home.shell)},
            {"from": "gpt", "value": words},
        ]
        home.rows(*[row(conversations=talk, id=words)] * 4)
        home.edit("context: 256", "context: 4096")
        home.edit("tokens: 2048", "tokens: 8192")
        return TRAIN

    return spoil


# ------------------------------------------------------------------ images


def chunk(kind: bytes, data: bytes) -> bytes:
    """One of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, mode: int = 2) -> bytes:
    """Returns a PNG of that header, with as many zeros as a byte's worth of deflate gives."""
    header = struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)
    body = zlib.compress(bytes(min(width * height * 3 + height, 50_000_000)), 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(more)
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def _drawn(kind: str) -> bytes:
    out = io.BytesIO()
    Pil.new("RGB", (64, 64), (1, 2, 3)).save(out, format=kind)
    return out.getvalue()


IMAGES: dict[str, Callable[[], bytes]] = {
    "of 50,000 squared": lambda: png(50_000, 50_000),
    "of 9,400 squared": lambda: png(9_400, 9_400),
    "of 2^31": lambda: png(2**31 - 1, 2**31 - 1),
    "a sliver": lambda: png(1, 60_000),
    "of no size": lambda: png(0, 0),
    "with a text that unpacks": lambda: png(
        50_000, 50_000, chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**7)))
    ),
    "cut off": lambda: _drawn("JPEG")[:400],
    "empty": lambda: b"",
    "HTML": lambda: b"<html><script>alert(1)</script>",
    "SVG": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "EPS": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file closefile\n",
    "PDF": lambda: b"%PDF-1.4\n1 0 obj<</OpenAction<</S/Launch/F(touch)>>>>endobj",
    "TIFF": lambda: _drawn("TIFF"),
    "ICO": lambda: _drawn("ICO"),
    "PPM": lambda: b"P6 50000 50000 255\n",
    "a pickle": lambda: b"cos\nsystem\n(S'true'\ntR.",
    "an archive": lambda: b"PK\x03\x04" + bytes(100),
    "noise behind a good start": lambda: _drawn("PNG")[:60] + bytes(range(256)) * 10,
}


def _image(make: Callable[[], bytes]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        (home.data / "a.png").write_bytes(make())
        return DECODE

    return spoil


# ------------------------------------------------------------------ tokenizers


def json_tokenizer(**changes: object) -> bytes:
    """Returns a small tokenizer.json of words, with these changes."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{chr(97 + i): 3 + i for i in range(26)}}
    value: dict[str, object] = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": i, "content": w, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for i, w in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }  # fmt: skip
    return json.dumps(value | changes).encode()


def _replace(pattern: object, content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


GROWING = {"type": "Sequence", "normalizers": [_replace({"String": "a"}, "a" * 100)] * 12}
SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+(a+)+(a+)+$"}, "behavior": "Isolated", "invert": False}
DEEP = {"type": "Sequence", "normalizers": []}
for _n in range(100):
    DEEP = {"type": "Sequence", "normalizers": [DEEP]}
TEMPLATE = {
    "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}] * 3, "pair": [],
    "special_tokens": {"</s>": {"id": "</s>", "ids": [2] * 1000, "tokens": ["</s>"] * 1000}},
}  # fmt: skip
CONFIG = json.dumps({
    "eos_token": "</s>", "bos_token": "<s>", "tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]},
    "chat_template": "{{ cycler.__init__.__globals__.os.popen('SHELL').read() }}{% for x in range(10**12) %}{% endfor %}",
}).encode()  # fmt: skip
RANKS = b"\n".join(base64.b64encode(bytes([i])) + b" %d" % i for i in range(256))

TOKENIZERS: dict[str, tuple[str, bytes, tuple[int, ...]]] = {
    "nothing": ("tokenizer.json", b"", (2,)),
    "no object": ("tokenizer.json", b"[]", (2,)),
    "deep": ("tokenizer.json", b'{"model":' * 100_000, (2,)),
    "an unknown type": ("tokenizer.json", json_tokenizer(pre_tokenizer={"type": "Python", "code": "x"}), (2,)),
    "a broken expression": ("tokenizer.json", json_tokenizer(pre_tokenizer=SPLIT | {"pattern": {"Regex": "("}}), (2,)),
    "an expression that backtracks": ("tokenizer.json", json_tokenizer(pre_tokenizer=SPLIT), (0, 2)),
    "a normalizer that backtracks": ("tokenizer.json", json_tokenizer(normalizer=_replace({"Regex": "(a|a)*$"}, "")), (0, 2)),
    "a normalizer that grows": ("tokenizer.json", json_tokenizer(normalizer=GROWING), (2,)),
    "a normalizer of normalizers": ("tokenizer.json", json_tokenizer(normalizer=DEEP), (0, 2)),
    "a broken map": ("tokenizer.json", json_tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), (0, 2)),
    "ids out of range": ("tokenizer.json", json_tokenizer(model={"type": "WordLevel", "vocab": {"<unk>": 4294967295, "</s>": 2}, "unk_token": "<unk>"}), (2,)),
    "added ids out of range": ("tokenizer.json", json_tokenizer(added_tokens=[{"id": 4000000000, "content": "</s>", "special": True}]), (2,)),
    "added tokens that are none": ("tokenizer.json", json_tokenizer(added_tokens=[1]), (2,)),
    "an empty added token": ("tokenizer.json", json_tokenizer(added_tokens=[{"id": 2, "content": "", "special": True}]), (0, 2)),
    "merges of what is not there": ("tokenizer.json", json_tokenizer(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}), (2,)),
    "custom post-processing": ("tokenizer.json", json_tokenizer(post_processor=TEMPLATE), (0,)),
    "a template and code beside it": ("tokenizer_config.json", CONFIG, (0,)),
    "garbage": ("tokenizer.model", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f" * 10, (2,)),
    "a pickle": ("tokenizer.model", b"cos\nsystem\n(S'SHELL'\ntR.", (2,)),
    "no pieces": ("tokenizer.model", b"\x12\x00\x1a\x00", (2,)),
    "tiktoken garbage": ("x.tiktoken", b"\xff\xfe" * 100, (2,)),
    "tiktoken, too long a piece": ("x.tiktoken", RANKS + b"\n" + base64.b64encode(b"a" * 10**6) + b" 256", (2,)),
    "tiktoken, a huge rank": ("x.tiktoken", RANKS + b"\nYWE= " + b"9" * 10_000, (2,)),
}  # fmt: skip


def _tokenizer(file: str, content: bytes) -> Spoil:
    def spoil(home: Home) -> list[object]:
        folder = home.path / "words"
        folder.mkdir()
        (folder / "evil.py").write_text(home.python)
        if file == "tokenizer_config.json":
            (folder / "tokenizer.json").write_bytes(json_tokenizer())
        else:
            (folder / "tokenizer_config.json").write_bytes(CONFIG.replace(b"SHELL", home.shell.encode()))
        (folder / file).write_bytes(content.replace(b"SHELL", home.shell.encode()))
        home.edit("data/tokenizer.model", "words")
        talk = [{"from": "human", "value": "<image>\n" + "a" * 5000 + "!"}, {"from": "gpt", "value": "a b"}]
        home.rows(*[row(conversations=talk)] * 4)
        home.edit("batch:  {samples: 2}", "batch:  {samples: 2, too_long: truncate}")
        return TRAIN

    return spoil


def _through_images(home: Home) -> list[object]:
    home.edit("images: data,", "images: /,")
    home.rows(row(image=str(home.outside / "secret.png")))
    return DECODE


def _lines(home: Home) -> list[object]:
    (home.data / "rows.jsonl").write_text(
        "\n".join(["{}", '{"id": "../x"}', "[" * 10_000, json.dumps(row(image="..")), '"'])
    )
    home.edit("rows.json", "rows.jsonl")
    return CHECK


def _pipe(home: Home) -> list[object]:
    (home.data / "rows.json").unlink()
    os.mkfifo(home.data / "rows.json")
    return CHECK


def _linked_root(home: Home) -> list[object]:
    (home.data / "images").symlink_to("/nonexistent")
    home.edit("images: data,", "images: data/images,")
    return CHECK


def _python_beside(home: Home) -> list[object]:
    for name in (
        "timm.py",
        "yaml.py",
        "__init__.py",
        "conftest.py",
        "sitecustomize.py",
        "lmmkit.py",
        "numpy.py",
    ):
        for folder in (home.path, home.data):
            Path(folder / name).write_text(home.python)
    return TRAIN


OTHERS = (
    Artefact("path absolute below the root of all", _through_images, says="record 0"),
    Artefact("rows of lines", _lines, says="rows.jsonl:5"),
    Artefact("rows a pipe", _pipe, says="records/file"),
    Artefact("images a dead link", _linked_root, says="records/no-image-folder"),
    Artefact("data with Python beside it", _python_beside, code=(0,)),
)
