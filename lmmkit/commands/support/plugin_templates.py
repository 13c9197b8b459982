"""What `lmmkit plugins new` writes: a plugin that works, its recipe and its test, to be changed."""

from __future__ import annotations

from typing import Literal

from lmmkit.commands.support.further_templates import (
    CONNECTOR,
    CONNECTOR_TEST,
    REDUCER,
    REDUCER_TEST,
    ROWS,
    ROWS_TEST,
    STEP,
    STEP_TEST,
    WEIGHT,
    WEIGHT_TEST,
)

PluginKind = Literal["loss", "task", "token", "weight", "rows", "step", "reducer", "connector"]

LOSS = '''"""NAME: a term on the existing views. Run `lmmkit plugins explain NAME.py --trust-files` for its settings."""

from dataclasses import dataclass

from torch import Tensor

from lmmkit.api import AttnMass, Ctx, Dims, Loss, Metric, Select, hookimpl


@dataclass(frozen=True, kw_only=True)
class CLASS(Loss):
    """Raises the attention that responses pay to the image, up to `floor`."""

    floor: float = 0.5

    @property
    def needs(self) -> tuple[AttnMass]:
        return (AttnMass(q=Select(supervised=True)),)

    def check(self, dims: Dims) -> str:
        return "" if 0 <= self.floor <= 1 else f"floor: {self.floor}, which is not 0 to 1"

    def value(self, ctx: Ctx) -> Tensor:
        return (self.floor - ctx[self.needs[0]]).clamp(min=0).sum()

    def metrics(self, ctx: Ctx) -> dict[str, Metric]:
        (need,) = self.needs
        return {"mass": Metric(ctx[need].sum(), ctx.batch.gathers[need].uniform_Q.sum())}


@hookimpl
def lmmkit_components():
    return {"NAME": CLASS}
'''
LOSS_TEST = """

def test_attention_above_the_floor_costs_nothing():
    loss = CLASS(name="NAME", floor=0.5)
    (need,) = loss.needs
    n = len(fake_ctx(loss)[need])
    assert float(loss.value(fake_ctx(loss, taps={need: torch.full((n,), 0.75)}))) == 0
    assert float(loss.value(fake_ctx(loss, taps={need: torch.full((n,), 0.25)}))) == 0.25 * n
"""
TASK = '''"""NAME: a task that changes the images of a sample, and predicts the change."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.api import AuxTask, Ctx, Dims, HiddenMean, Metric, Sample, Select, View, hookimpl

TURNS = 4


@dataclass(frozen=True)
class Turned:
    """Turns an image by quarters."""

    quarters: int

    def __call__(self, pixels_CXY: Tensor) -> Tensor:
        return torch.rot90(pixels_CXY, self.quarters, (1, 2))


@dataclass(frozen=True, kw_only=True)
class CLASS(AuxTask):
    """Turns all images of a sample by the same quarters, and predicts the number of quarters."""

    @property
    def needs(self) -> tuple[HiddenMean]:
        return (HiddenMean(Select(view=self.name, kind="image")),)

    def modules(self, dims: Dims) -> nn.Linear:
        return nn.Linear(dims.width, TURNS)

    def views(self, sample: Sample, rng: np.random.Generator) -> list[View]:
        if not sample.images:
            return []
        quarters = int(rng.integers(TURNS))
        images = tuple(replace(image, edit=Turned(quarters)) for image in sample.images)
        return [View(sample=replace(sample, images=images), labels={"quarters": quarters})]

    def value(self, ctx: Ctx) -> Tensor:
        return F.cross_entropy(self._logits(ctx), ctx.label("quarters"), reduction="sum")

    def chance(self, dims: Dims) -> float:
        return math.log(TURNS)

    def metrics(self, ctx: Ctx) -> dict[str, Metric]:
        right = self._logits(ctx).argmax(-1) == ctx.label("quarters")
        return {"accuracy": Metric(right.float().sum(), len(right) / TURNS)}

    def _logits(self, ctx: Ctx) -> Tensor:
        return ctx.module(ctx[self.needs[0]]).float()


@hookimpl
def lmmkit_components():
    return {"NAME": CLASS}
'''
TASK_TEST = """

def test_without_knowledge_the_value_is_that_of_a_guess():
    task = CLASS(name="NAME")
    ctx = fake_ctx(task, samples=4)
    for parameter in ctx.module.parameters():
        parameter.data.zero_()
    assert abs(task.value(ctx).item() / task.count(ctx.batch) - task.chance(ctx.dims)) < 1e-5
"""
TOKEN = '''"""NAME: a learned token, and a term that reads it."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lmmkit.api import Ctx, Dims, HiddenAt, Insert, LearnedTokens, Loss, Select, TokenStrategy, View, hookimpl


@dataclass(frozen=True, kw_only=True)
class CLASS(TokenStrategy):
    """Inserts `rows` learned rows after everything, where they can attend to image and text."""

    rows: int = 1
    provides: ClassVar[tuple[str, ...]] = ("NAME",)

    def check(self, dims: Dims) -> str:
        return "" if self.rows > 0 else f"rows: {self.rows}, which is not above 0"

    def edit(self, view: View) -> list[Insert]:
        return [Insert("end", "NAME", n=self.rows)]

    def modules(self, dims: Dims) -> LearnedTokens:
        return LearnedTokens(self.rows, dims.width)


@dataclass(frozen=True, kw_only=True)
class CLASSReader(Loss):
    """Keeps the hidden states of these rows short. Read them for something better."""

    @property
    def needs(self) -> tuple[HiddenAt]:
        return (HiddenAt(Select(token_name="NAME")),)

    def value(self, ctx: Ctx) -> Tensor:
        return ctx[self.needs[0]].float().square().mean(-1).sum()


@hookimpl
def lmmkit_components():
    return {"NAME": CLASS, "NAME_reader": CLASSReader}
'''
TOKEN_TEST = """

def test_the_reader_counts_every_row():
    reader, token = CLASSReader(name="NAME_reader"), CLASS(name="NAME", rows=3)
    ctx = fake_ctx(reader, token, samples=2)
    assert reader.count(ctx.batch) == 6
    assert torch.isfinite(reader.value(ctx))
"""
TEST_HEAD = '''"""Tests of NAME. More helpers: docs/plugins.md, "Testing a plugin"."""

import torch
from NAME import CLASSES

from lmmkit.testing import HELPERS


def test_a_dry_run_finds_no_problem():
    assert dry_run(COMPONENTS) == []
'''
RECIPE = """\
# What:   the plugin NAME on a small model from scratch, on drawn scenes.
# Run:    lmmkit data make-scenes scenes --count 600 --heldout 50
#         lmmkit check NAME.yaml TRUST
#         lmmkit train NAME.yaml TRUST
format: 1
seed: 1
model:
  vision:    {width: 96, depth: 4, heads: 3, patch: 8, image_size: 48, feature_layer: -1}
  connector: {kind: KIND}
  text:      {width: 128, depth: 4, heads: 4, mlp: 352, context: 256}
  tokenizer: {from: scenes/tokenizer.model, kind: sentencepiece}
  chat:      {template: vicuna_v1, image_fit: pad}
plugins:
PLUGINS
data:
  questions: {kind: llava, records: scenes/finetune.json, images: scenes, template: vicuna_v1, image_fit: pad}
stages:
  only:
    data:   {questions: 1.0}
    batch:  {samples: 8}
    length: {steps: 100}
    train:  {vision: {}, connector: {}, text: {}, plugins: {}}
    optim:  {lr: 1.0e-3, warmup: 0.1}
    losses: {LOSSES}
output: {save_every: 0, images_every: 0}
"""
PROJECT = """\
[build-system]
requires = ["setuptools>=68"]
build-backend = "setuptools.build_meta"

[project]
name = "NAME"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["lmmkit"]

[project.entry-points."lmmkit.plugins"]
ENTRIES

[tool.setuptools.packages.find]
where = ["src"]
"""
TEXTS: dict[PluginKind, tuple[str, str]] = {
    "loss": (LOSS, LOSS_TEST), "task": (TASK, TASK_TEST), "token": (TOKEN, TOKEN_TEST),
    "weight": (WEIGHT, WEIGHT_TEST), "rows": (ROWS, ROWS_TEST), "step": (STEP, STEP_TEST),
    "reducer": (REDUCER, REDUCER_TEST), "connector": (CONNECTOR, CONNECTOR_TEST),
}  # fmt: skip
LOSSES: dict[PluginKind, str] = {
    "token": "next_token: 1.0, NAME_reader: 0.1",
    "weight": "next_token: {weight: 1.0, by: [NAME]}",
    "reducer": "next_token: 1.0",
    "connector": "next_token: 1.0",
}
CONNECTORS: dict[PluginKind, str] = {
    "reducer": "mlp2x_gelu, reduce: NAME", "connector": "none, reduce: NAME",
}  # fmt: skip


def written(name: str, kind: PluginKind, *, package: bool) -> dict[str, str]:
    """Returns the texts of the files of a new plugin, by path."""
    plugin, test = TEXTS[kind]
    names = [name, f"{name}_reader"] if kind == "token" else [name]
    class_name = "".join(word.capitalize() for word in name.split("_"))
    classes = [class_name, f"{class_name}Reader"] if kind == "token" else [class_name]
    use = "{}" if package else f"{{use: {name}.py:COMPONENT}}"
    words = {
        "CLASSES": ", ".join(classes),
        "COMPONENTS": ", ".join(f'{cls}(name="{each}")' for cls, each in zip(classes, names, strict=True)),
        "PLUGINS": "\n".join(f"  {each}: {use.replace('COMPONENT', each)}" for each in names),
        "ENTRIES": "\n".join(f'{each} = "{name}"' for each in names),
        " TRUST": "" if package else " --trust-files",
        "KIND": CONNECTORS.get(kind, "mlp2x_gelu"),
        "LOSSES": LOSSES.get(kind, "next_token: 1.0, NAME: 0.1"),
        "HELPERS": "dry_run, fake_ctx" if "fake_ctx(" in test else "dry_run",
        "CLASS": class_name,
        "NAME": name,
    }

    def filled(text: str) -> str:
        for word, meaning in words.items():
            text = text.replace(word, meaning)
        return text

    files = {f"{name}.yaml": RECIPE}
    if package:
        files |= {
            "pyproject.toml": PROJECT,
            f"src/{name}/__init__.py": plugin,
            f"tests/test_{name}.py": TEST_HEAD + test,
        }
        return {f"{name}/{path}": filled(text) for path, text in files.items()}
    files |= {f"{name}.py": plugin, f"test_{name}.py": TEST_HEAD + test}
    return {path: filled(text) for path, text in files.items()}
