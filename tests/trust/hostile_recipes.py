"""Recipes that try to run code, to open files outside the run, or to never end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from tests.support.hostile_home import Artefact, Home

CHECK = ["check", "recipe.yaml"]
TRAIN = ["train", "recipe.yaml", "--out", "out"]


def artefacts() -> Iterator[Artefact]:
    """Yields all hostile recipes."""
    for name, (old, new, says) in EDITS.items():
        yield Artefact(f"recipe {name}", _edited(old, new), says=says)
    for name, text in WHOLE.items():
        yield Artefact(f"recipe {name}", _whole(text), says="recipe.yaml")
    for name, (old, new) in ACCEPTED.items():
        yield Artefact(f"recipe {name}", _edited(old, new, CHECK), code=(0, 2))
    yield from OTHERS


def _edited(old: str, new: str, words: list[object] = TRAIN) -> Callable[[Home], list[object]]:
    def spoil(home: Home) -> list[object]:
        (home.path / "evil.py").write_text(home.python)
        filled = (
            new.replace("SHELL", home.shell)
            .replace("PYTHON", home.python)
            .replace("OUTSIDE", str(home.outside))
        )
        home.edit(old, filled)
        return words

    return spoil


def _whole(text: str | bytes) -> Callable[[Home], list[object]]:
    def spoil(home: Home) -> list[object]:
        home.recipe.write_bytes(text.encode() if isinstance(text, str) else text)
        return CHECK

    return spoil


# old text, new text, what the message contains
EDITS = {
    "python/object/apply": ("seed: 5", "seed: !!python/object/apply:os.system ['SHELL']", "recipe/tag"),
    "python/object/new": ("seed: 5", "seed: !!python/object/new:os.system ['SHELL']", "recipe/tag"),
    "python/name": ("seed: 5", "seed: !!python/name:os.system", "recipe/tag"),
    "python/module": ("plugins: {}", "plugins: {image_order: !!python/module:evil {}}", "recipe/tag"),
    "own tag": ("seed: 5", "seed: !include /etc/passwd", "recipe/tag"),
    "binary tag": ("seed: 5", "seed: !!binary c2VjcmV0", "recipe/tag"),
    "tag on a key": ("seed: 5", "!!python/name:os.system seed: 5", "recipe/tag"),
    "merge key": ("seed: 5", "<<: {seed: 5}", "recipe/anchor"),
    "alias": ("seed: 5", "seed: &a 5\nnumerics: *a", "recipe/anchor"),
    "a class by its path": ("plugins: {}", "plugins: {mine: {use: os.system}}", "plugin/unknown"),
    "a function of lmmkit": ("plugins: {}", "plugins: {mine: {use: lmmkit.api.plugin_files.load_file}}", "plugin/unknown"),
    "_target_": ("plugins: {}", "plugins: {image_order: {_target_: os.system, permutations: 5}}", "plugin/unknown-key"),
    "_component_": ("losses: {next_token: 1.0}", "losses: {next_token: {_component_: os.system}}", "unknown-key"),
    "a local file": ("plugins: {}", "plugins: {mine: {use: ./evil.py}}", "plugin/untrusted-file"),
    "a local file, absolute": ("plugins: {}", "plugins: {mine: {use: OUTSIDE/evil.py}}", "plugin/untrusted-file"),
    "a local file, named": ("plugins: {}", "plugins: {mine: {use: 'evil.py:mine'}}", "plugin/untrusted-file"),
    "an observer": ("output: {", "output: {observers: [./evil.py], ", "plugin/untrusted-file"),
    "a module of this folder": ("plugins: {}", "plugins: {evil: {}}", "plugin/unknown"),
    "a constructor in a name": ("plugins: {}", "plugins: {'__init__': {}}", "recipe/name"),
    "a stage outside": ("  learn:", "  ../../outside:", "recipe/name"),
    "a source outside": ("  rows: {kind", "  ../rows: {kind", "recipe/name"),
    "a kind that is code": ("kind: llava", "kind: os.system", "data.rows.kind"),
    "a variable": ("records: data/rows.json", "records: '${HOME}/rows.json'", "records/file"),
    "a shell": ("records: data/rows.json", "records: '$(SHELL)'", "records/file"),
    "backticks": ("images: data", "images: '`SHELL`'", "records/no-image-folder"),
    "a resolver": ("records: data/rows.json", "records: '${oc.env:HOME}'", "records/file"),
    "a pipe": ("records: data/rows.json", "records: '|SHELL'", "records/file"),
    "a URL for rows": ("records: data/rows.json", "records: http://127.0.0.1:9/rows.json", "records/file"),
    "a file URL": ("records: data/rows.json", "records: file:///etc/passwd", "records/file"),
    "a bucket": ("images: data", "images: s3://bucket/data", "records/no-image-folder"),
    "NUL in a path": ("records: data/rows.json", 'records: "data/rows.json\\0.txt"', "records/file"),
    "NUL in a folder": ("images: data", 'images: "data\\0"', "records/no-image-folder"),
    "NUL in a tokenizer": ("data/tokenizer.model", '"data/tokenizer.model\\0"', "tokenizer/file"),
    "a pipe for a tokenizer": ("data/tokenizer.model", "/dev/zero", "tokenizer/file"),
    "a device for rows": ("records: data/rows.json", "records: /dev/zero", "records/file"),
    "a huge number": ("seed: 5", f"seed: {10**400}", "seed"),
    "a huge float": ("lr: 1.0e-3", "lr: 1e999", "lr"),
    "not a number": ("lr: 1.0e-3", "lr: .nan", "lr"),
    "a half surrogate": ("records: data/rows.json", 'records: "\\ud800"', "recipe.yaml"),
    "terminal codes": ("seed: 5", '"\\e]0;owned\\a\\e[2J": 5\nseed: 5', "unknown-key"),
    "markup": ("seed: 5", '"[bold][link=http://x]": 5\nseed: 5', "unknown-key"),
    "a long key": ("seed: 5", f"seed: 5\n{'k' * 100_000}: 1", "recipe"),
    "a start outside": ("    data:   {rows", "    start: ../outside\n    data:   {rows", "train/no-start-model"),
    "timm from a hub": ("vision:    {width: 16, depth: 2, heads: 2, patch: 8, image_size: 24, feature_layer: -1}", "vision: {timm: 'hf-hub:timm/vit_tiny_patch16_224', weights: none}", "model/timm"),
    "timm from a hub, tagged": ("vision:    {width: 16, depth: 2, heads: 2, patch: 8, image_size: 24, feature_layer: -1}", "vision: {timm: 'vit_tiny_patch16_224.hf-hub:a/b', weights: none}", "model/timm"),
    "timm from a folder": ("vision:    {width: 16, depth: 2, heads: 2, patch: 8, image_size: 24, feature_layer: -1}", "vision: {timm: 'local-dir:./evil', weights: none}", "model/timm"),
    "timm pretrained": ("vision:    {width: 16, depth: 2, heads: 2, patch: 8, image_size: 24, feature_layer: -1}", "vision: {timm: vit_tiny_patch16_224, weights: none, args: {pretrained: true}}", "model/timm"),
    "timm with a URL": ("vision:    {width: 16, depth: 2, heads: 2, patch: 8, image_size: 24, feature_layer: -1}", "vision: {timm: vit_tiny_patch16_224, weights: none, args: {pretrained_cfg: {url: 'http://127.0.0.1:9/x'}}}", "model/timm"),
    "timm on pickled weights": ("vision:    {width: 16, depth: 2, heads: 2, patch: 8, image_size: 24, feature_layer: -1}", "vision: {timm: vit_tiny_patch16_224, weights: evil.bin}", "evil.bin"),
}  # fmt: skip

WHOLE = {
    "an alias bomb": "a: &a [x,x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)},*{chr(97 + i)}]\n" for i in range(20)),
    "deep lists": "[" * 100_000,
    "deep sections": "a: " + "{a: " * 5000,
    "deep blocks": "\n".join(" " * i + "a:" for i in range(1000)),
    "NUL": "seed: 5\0",
    "UTF-16": "seed: 5".encode("utf-16"),
    "no UTF-8": b"seed: \xff\xfe",
    "a pickle": b"cos\nsystem\n(S'true'\ntR.",
    "two documents": "seed: 5\n--- !!python/object/apply:os.system ['true']\n",
    "a directive": "%YAML 1.1\n%TAG ! tag:yaml.org,2002:python/\n---\nseed: !name:os.system\n",
    "ten megabytes": "x: 1\n" * 2_500_000,
    "nothing": "",
    "a script": "#!/bin/sh\ntrue\n",
    "a template": "{% for x in range(10**9) %}{{ cycler.__init__.__globals__.os.popen('true').read() }}{% endfor %}",
    "a key of a million": "? " + "k" * 900_000 + "\n: 1\n",
    "complex keys": "? [a, {b: c}]\n: 1\n",
}  # fmt: skip

ACCEPTED = {
    "absurd depth": ("depth: 1,", "depth: 1000000000,"),
    "absurd width": ("width: 16, depth: 1, heads: 2", "width: 1000000000, depth: 1, heads: 2"),
    "absurd image size": ("image_size: 24", "image_size: 8000000"),
    "absurd context": ("context: 256", "context: 4000000000000"),
    "absurd batch": ("samples: 2", "samples: 1000000000000"),
    "absurd steps": ("steps: 2}", "steps: 1000000000000000}"),
    "absurd workers": ("threads: 1", "threads: 1000000000"),
}


def _pipe(home: Home) -> list[object]:
    home.recipe.unlink()
    os.mkfifo(home.recipe)
    return CHECK


def _device(home: Home) -> list[object]:
    home.recipe.unlink()
    home.recipe.symlink_to("/dev/zero")
    return CHECK


def _override(home: Home) -> list[object]:
    return [*CHECK, "--set", f"seed=!!python/object/apply:os.system ['{home.shell}']"]


def _override_dunder(home: Home) -> list[object]:
    return [*CHECK, "--set", "__class__.__init__=5", "--set", "places=5", "--set", "=", "--set", "a" * 10_000]


def _explained(home: Home) -> list[object]:
    (home.path / "evil.py").write_text(home.python)
    return ["plugins", "explain", "evil.py"]


OTHERS = (
    Artefact("recipe a FIFO", _pipe, says="recipe/file"),
    Artefact("recipe a link to a device", _device, says="recipe/file"),
    Artefact("recipe a tag by --set", _override, says="recipe/tag"),
    Artefact("recipe fields by --set", _override_dunder, says="--set"),
    Artefact("recipe an untrusted file explained", _explained, says="plugin/untrusted-file"),
)
