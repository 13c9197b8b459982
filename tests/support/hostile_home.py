"""Makes a small good data set, recipe, run and model, in which a hostile artefact spoils one thing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as Pil
from typer.testing import CliRunner

from lmmkit.cli import app

TOUCHED = "touched"  # the file outside that a payload would make
SECRET = "SECRET-THAT-NO-ONE-MAY-READ"

RECIPE = """format: 1
seed: 5
model:
  vision:    {width: 16, depth: 2, heads: 2, patch: 8, image_size: 24, feature_layer: -1}
  connector: {kind: mlp2x_gelu}
  text:      {width: 16, depth: 1, heads: 2, kv_heads: 1, mlp: 24, context: 256}
  tokenizer: {from: data/tokenizer.model}
  chat:      {template: vicuna_v1, image_fit: pad}
data:
  rows: {kind: llava, records: data/rows.json, images: data, template: vicuna_v1, image_fit: pad}
plugins: {}
stages:
  learn:
    data:   {rows: 1.0}
    batch:  {samples: 2}
    length: {steps: 2}
    train:  {connector: {}, text: {}}
    optim:  {lr: 1.0e-3}
    losses: {next_token: 1.0}
evaluate:
  tasks: {answers: {kind: questions, data: rows, max_new_tokens: 2}}
output: {save_every: 1, keep: 2}
speed: {tokens: 2048, threads: 1}
"""


def row(**changes: object) -> dict[str, object]:
    """Returns a good record with these changes."""
    return {
        "id": "1", "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."},
        ],
    } | changes  # fmt: skip


@dataclass(frozen=True)
class Home:
    """One artefact's own folder, a copy of the base; `outside` must stay as it is."""

    path: Path
    outside: Path
    base: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def shell(self) -> str:
        """Returns a command that leaves a trace outside."""
        return f"touch {self.outside / TOUCHED}"

    @property
    def python(self) -> str:
        """Returns a program that leaves a trace outside."""
        return f"open({str(self.outside / TOUCHED)!r}, 'w').close()"

    def with_(self, name: str) -> Path:
        """Copies the base's `run`, `hf` or `peft`, as if it had been made here."""
        shutil.copytree(self.base / name, self.path / name)
        for file in (self.path / name).rglob("*.json"):
            file.write_text(file.read_text().replace(str(self.base), str(self.path)))
        return self.path / name

    def edit(self, old: str, new: str) -> None:
        """Changes the recipe."""
        text = self.recipe.read_text()
        assert old in text, old
        self.recipe.write_text(text.replace(old, new))

    def rows(self, *rows: object) -> None:
        """Writes the records file."""
        (self.data / "rows.json").write_text(json.dumps(rows or [row()] * 4))


@dataclass(frozen=True)
class Artefact:
    """A hostile thing and what a user would do with it: `spoil` makes it and gives the command.

    `code`: the exit codes that will do; `says`: what its message must name; `write`: the names in its
    folder that the command may write to.
    """

    name: str
    spoil: Callable[[Home], list[object]]
    code: tuple[int, ...] = (2,)
    says: str = ""
    write: tuple[str, ...] = ("out", "run", "bad_records.jsonl")


def make_base(base: Path) -> Path:
    """Makes the good things by the commands themselves: data, recipe, `run`, `hf`, `peft`."""
    from lmmkit.scenes.tokenizer import train_tokenizer

    data = base / "data"
    data.mkdir(parents=True)
    words = (Path(__file__).resolve().parent.parent.parent / "README.md").read_text().splitlines()
    (data / "tokenizer.model").write_bytes(train_tokenizer(words))
    Pil.new("RGB", (40, 30), (200, 30, 30)).save(data / "a.png")
    (data / "rows.json").write_text(json.dumps([row(), row(id="2"), row(id="3"), row(id="4")]))
    (base / "recipe.yaml").write_text(RECIPE)
    lora = RECIPE.replace("text: {}}", "text: {lora: {r: 2, alpha: 4}}}")
    (base / "lora.yaml").write_text(lora)
    for words in (
        ("train", base / "recipe.yaml", "--root", base, "--out", base / "run"),
        ("model", "export", base / "run", base / "hf", "--format", "llava-hf"),
        ("train", base / "lora.yaml", "--root", base, "--out", base / "lora"),
        ("model", "export", base / "lora", base / "peft", "--format", "peft"),
    ):
        result = CliRunner().invoke(app, list(map(str, words)))
        assert result.exit_code == 0, (words, result.output, result.exception)
    return base


def home_in(folder: Path, base: Path) -> Home:
    """Makes a fresh copy to spoil."""
    home, outside = folder / "home", folder / "outside"
    outside.mkdir(parents=True)
    home.mkdir()
    shutil.copytree(base / "data", home / "data")
    shutil.copy(base / "recipe.yaml", home / "recipe.yaml")
    (outside / "secret.txt").write_text(SECRET)
    shutil.copy(base / "data" / "a.png", outside / "secret.png")
    return Home(home, outside, base)


def outside(home: Home) -> dict[str, int]:
    """Files outside and their sizes."""
    return {
        str(p.relative_to(home.outside)): p.stat().st_size for p in home.outside.rglob("*") if p.is_file()
    }
