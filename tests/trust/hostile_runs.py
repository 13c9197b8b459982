"""Run folders and checkpoints that would be run, lead out of their folder, or never end."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lmmkit.runs.files import file_crc32
from lmmkit.training.checkpoint import manifest
from tests.support.hostile_home import Artefact, Home

RESUME = ["train", "recipe.yaml", "--out", "run", "--resume"]
EVAL = ["eval", "run"]
CHAT = ["chat", "run", "--prompt", "x", "--max-new-tokens", "1"]
EXPORT = ["model", "export", "run", "out", "--format", "peft"]
DIFF = ["diff", "run", "recipe.yaml"]
REPORT = ["report", "run", "--out", "out/page.html"]
Spoil = Callable[[Home], list[object]]


def artefacts() -> Iterator[Artefact]:
    """Yields all of them."""
    for name, content in JUNK.items():
        yield Artefact(f"run.json {name}, eval", _file("run.json", content, EVAL), code=(0, 2))
        yield Artefact(f"run.json {name}, resume", _file("run.json", content, RESUME), code=(0, 2))
        yield Artefact(f"run.json {name}, report", _file("run.json", content, REPORT), code=(0, 2))
        yield Artefact(f"results.json {name}, report", _file("results.json", content, REPORT), code=(0, 2))
    for name, content in METRICS.items():
        yield Artefact(f"metrics {name}", _file("metrics.jsonl", content, RESUME), code=(0, 2))
        yield Artefact(f"metrics {name}, report", _file("metrics.jsonl", content, REPORT), code=(0, 2))
    for name in (
        "lock",
        "tb",
        "checkpoints",
        "model",
        "metrics.jsonl",
        "run.json",
        "plan.txt",
        "results.json",
    ):
        yield Artefact(f"run with a link for {name}", _linked(name), says="run/link")
    for name in ("lock", "metrics.jsonl", "results.json"):
        yield Artefact(f"run with a pipe for {name}", _piped(name), says="run/link")
    for name, content in RESULTS.items():
        yield Artefact(f"results {name}", _file("results.json", content, REPORT), code=(0,))
    for words in (EVAL, CHAT, RESUME, EXPORT, REPORT):
        yield Artefact(f"run with a local plugin, {words[0]}", _plugin(words), code=(0, 2))
        yield Artefact(f"run with an observer, {words[0]}", _observer(words), code=(0, 2))
    for name, text in RESOLVED.items():
        yield Artefact(
            f"run with a resolved recipe {name}",
            _file("recipe.resolved.yaml", text, DIFF),
            says="recipe.resolved.yaml",
        )
    for name, changes in MANIFESTS.items():
        yield Artefact(f"manifest {name}", _manifest(changes), says="step-00000002")
    for name, state in STATES.items():
        yield Artefact(f"checkpoint state {name}", _state(state), says="state.json")
    for name, make in TENSORS.items():
        yield Artefact(f"checkpoint {name}", _tensors(make), says="step-00000002")
    yield from OTHERS


JUNK: dict[str, bytes] = {
    "empty": b"{}",
    "a list": b"[]",
    "no JSON": b"cos\nsystem\n(S'true'\ntR.",
    "deep": b'{"a":' * 100_000,
    "a root that is a number": b'{"root": 5}',
    "a root with NUL": b'{"root": "\\u0000"}',
    "a root elsewhere": b'{"root": "/etc"}',
    "a root of a URL": b'{"root": "http://127.0.0.1:9/"}',
    "data that is a list": b'{"root": ".", "recipe": [], "plans": 3, "data": [1], "plugins": "x", "observers": {}}',
}
METRICS: dict[str, bytes] = {
    "without steps": b'{"a": 1}\n{"b": 2}\n',
    "with steps of text": b'{"step": "__import__"}\n',
    "with lists": b"[1]\n[2]\n",
    "deep": b'{"a":' * 100_000 + b"\n{}\n",
    "of NUL": b"\0" * 1000,
    "with huge numbers": b'{"step": ' + b"9" * 10_000 + b"}\n{}\n",
}
RESULTS: dict[str, bytes] = {
    "that are code": b'{"answers": "__import__"}',
    "with a figure that is a list": b'{"answers": {"accuracy": [1]}}',
    "with a huge figure": b'{"answers": {"accuracy": {"value": 1e999, "n": 3}, "accuracy/x": {"value": 1e300, "n": 1e300}}}',
    "with markup": b'{"<script>x</script>": {"accuracy": {"value": 0.5, "low": "<b>", "n": 3}}}',
}
RESOLVED: dict[str, bytes] = {
    "with a tag": b"seed: !!python/object/apply:os.system ['true']\n",
    "with an alias": b"a: &a 1\nb: *a\n",
    "of nothing": b"",
    "of a pickle": b"cos\nsystem\n(S'true'\ntR.",
}


def _file(name: str, content: bytes, words: list[object]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        (home.with_("run") / name).write_bytes(content)
        return words

    return spoil


def _linked(name: str) -> Spoil:
    def spoil(home: Home) -> list[object]:
        path = home.with_("run") / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        target = home.outside / ("secret.txt" if "." in name or name == "lock" else "")
        path.symlink_to(target)
        return RESUME

    return spoil


def _piped(name: str) -> Spoil:
    def spoil(home: Home) -> list[object]:
        path = home.with_("run") / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        return RESUME

    return spoil


def _spoil_recipes(home: Home, old: str, new: str) -> None:
    (home.path / "evil.py").write_text(home.python)
    run = home.with_("run")
    (run / "evil.py").write_text(home.python)
    for path in (run / "recipe.resolved.yaml", run / "model" / "learn" / "recipe.yaml", home.recipe):
        text = path.read_text()
        assert old in text, (path, old)
        path.write_text(text.replace(old, new))


def _plugin(words: list[object]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        _spoil_recipes(home, "plugins: {}", "plugins:\n  evil: {use: ./evil.py}")
        return words

    return spoil


def _observer(words: list[object]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        home.edit("output: {", "output: {observers: [], ")
        _spoil_recipes(home, "observers: []", "observers: [./evil.py]")
        return words

    return spoil


# ------------------------------------------------------------------ checkpoints


def newest(home: Home) -> Path:
    """Returns the newest checkpoint of a run, after deleting all others."""
    found = sorted((home.with_("run") / "checkpoints").glob("step-*"))
    for older in found[:-1]:
        shutil.rmtree(older)
    return found[-1]


def sign(folder: Path, changes: dict[str, object] | None = None) -> None:
    """Writes a manifest that fits the files: its checksums find accidents, not intent."""
    body = json.loads((folder / manifest.FILE_NAME).read_text())
    body.pop("crc32")
    for name in body["files"]:
        if (folder / name).is_file():
            body["files"][name] = [(folder / name).stat().st_size, file_crc32(folder / name)]
    body |= changes or {}
    crc = zlib.crc32(manifest._encode(body))
    (folder / manifest.FILE_NAME).write_bytes(manifest._encode(body | {"crc32": crc}))


MANIFESTS: dict[str, dict[str, object]] = {
    "with a path up": {"files": {"../../../../outside/secret.txt": [27, 0]}},
    "with an absolute path": {"files": {"/etc/hostname": [1, 0]}},
    "with a hidden name": {"files": {".hidden": [1, 0]}},
    "with a device": {"files": {"/dev/zero": [0, 0]}},
    "with NUL": {"files": {"a\0b": [1, 0]}},
    "with files that are a list": {"files": ["state.json"]},
    "with sizes of text": {"files": {"state.json": ["__import__", 0]}},
    "with no files": {"files": {}},
    "with tensors of another shape": {"tensors": {"model.x": ["float32", [2**62, 2**62]]}},
    "with tensors that are code": {"tensors": {"model.x": "__import__('os')"}},
    "of another schema": {"schema": "os.system"},
}


def _manifest(changes: dict[str, object]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        sign(newest(home), changes)
        return RESUME

    return spoil


HUGE = 2**70
STATES: dict[str, object] = {
    "empty": {},
    "a list": [],
    "without a stage": {"position": {"step": 1}},
    "of a stage that is not there": {"position": {"stage": "../../outside", "step": 1, "stage_step": 1}},
    "of text for steps": {"position": {"stage": "learn", "step": "1", "stage_step": "__import__"}},
    "of steps below zero": {"position": {"stage": "learn", "step": -1, "stage_step": -1}},
    "of steps beyond the end": {"position": {"stage": "learn", "step": HUGE, "stage_step": HUGE}},
    "with more": {"position": {"stage": "learn", "step": 2, "stage_step": 2, "__class__": "os.system"}},
}


def _state(state: object) -> Spoil:
    def spoil(home: Home) -> list[object]:
        folder = newest(home)
        (folder / "state.json").write_text(json.dumps(state))
        sign(folder)
        return RESUME

    return spoil


def _rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(path)), path)


def _rng(change: Callable) -> Callable[[Path], None]:
    return lambda folder: _rewrite(folder / "rng-rank00000.safetensors", change)


def _shard(change: Callable) -> Callable[[Path], None]:
    return lambda folder: _rewrite(sorted(folder.glob("shard-*"))[0], change)


def _pickled(folder: Path) -> None:
    sorted(folder.glob("shard-*"))[0].write_bytes(b"cos\nsystem\n(S'true'\ntR.")


TENSORS: dict[str, Callable[[Path], None]] = {
    "generators of none": _rng(lambda t: {}),
    "generators of one byte": _rng(lambda t: {"cpu": torch.zeros(1, dtype=torch.uint8)}),
    "generators of floats": _rng(lambda t: {"cpu": torch.zeros(5056)}),
    "generators of ones": _rng(lambda t: {"cpu": torch.full_like(t["cpu"], 255)}),
    "tensors of another shape": _shard(lambda t: {name: torch.zeros(3) for name in t}),
    "tensors of another type": _shard(
        lambda t: {name: tensor.to(torch.float64) for name, tensor in t.items()}
    ),
    "tensors that are not there": _shard(lambda t: dict(list(t.items())[:1])),
    "a pickle for tensors": _pickled,
}


def _tensors(make: Callable[[Path], None]) -> Spoil:
    def spoil(home: Home) -> list[object]:
        folder = newest(home)
        make(folder)
        sign(folder)
        return RESUME

    return spoil


def _checkpoint_link(home: Home) -> list[object]:
    folder = newest(home)
    shutil.move(folder, home.outside / folder.name)
    folder.symlink_to(home.outside / folder.name)
    return RESUME


def _staged_link(home: Home) -> list[object]:
    (newest(home).parent / ".tmp-00000001-abcd").symlink_to(home.outside)
    (home.path / "run" / "checkpoints" / ".trash-x").symlink_to(home.outside)
    return RESUME


def _stage_link(home: Home) -> list[object]:
    folder = home.with_("run") / "model" / "learn"
    shutil.rmtree(folder)
    (home.outside / "kept").mkdir()
    folder.symlink_to(home.outside / "kept")
    return RESUME


def _answers_link(home: Home) -> list[object]:
    folder = home.with_("run") / "answers" / "learn" / "answers"
    folder.mkdir(parents=True)
    (folder / "answers.jsonl").symlink_to(home.outside / "secret.txt")
    return EVAL


def _results(home: Home) -> list[object]:
    (home.with_("run") / "results.json").write_text('["os.system"]')
    return EVAL


OTHERS = (
    Artefact("checkpoint that is a link", _checkpoint_link, says="run/link"),
    Artefact("leftovers that are links", _staged_link, says="run/link"),
    Artefact("a stage's model that is a link", _stage_link, says="run/link"),
    Artefact("answers that are a link", _answers_link, says="run/link"),
    Artefact("results that are a list", _results, says="results.json"),
)
