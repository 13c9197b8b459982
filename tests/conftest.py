"""Shared by all tests: one small scene set, tiny recipes on it, one CPU thread, no network."""

from __future__ import annotations

import functools
import gc
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer.testing

from lmmkit import registry
from lmmkit.errors import LmmkitError
from lmmkit.recipe import Recipe, read_text

torch.set_num_threads(1)
gc.disable()  # collecting tests only adds objects: 15 s instead of 25
# a child must not finalise its parent's garbage: an error there formats a traceback, which fails inside `ast.parse`
os.register_at_fork(after_in_child=gc.freeze)
# what tests write need not outlast a power cut: a small run would wait for the disk for a third of its time
os.fsync = os.fstat
# no test installs a package: 6 ms for each plan
registry.entry_points = functools.cache(registry.entry_points)
typer.testing._get_command = functools.cache(typer.testing._get_command)  # 50 ms for each command that is run


def pytest_collection_finish() -> None:
    """Lets the garbage collector leave out what lives to the end: test items and imported modules."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Any attempt to reach an address other than this machine's fails the test that makes it."""
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    socket.socket.connect = refuse
    yield
    socket.socket.connect = connect


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Indexes of test data go where the tests' files go."""
    before = os.environ.get("LMMKIT_CACHE")
    os.environ["LMMKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("LMMKIT_CACHE")
    if before is not None:
        os.environ["LMMKIT_CACHE"] = before


@pytest.fixture(autouse=True, scope="session")
def whole_messages():
    """Fails a test that makes an error without its place, what was found, what was expected or a hint."""
    made = LmmkitError.__init__

    def check(self, problems):
        made(self, problems)
        for p in self.problems:
            assert all(part.strip() for part in (p.code, p.where, p.got, p.expected, p.hint)), p

    LmmkitError.__init__ = check
    yield
    LmmkitError.__init__ = made


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Iterator[Path]:
    """Writes a scene set of the least size. Tests share it: one that changes files copies them first."""
    from lmmkit.scenes import write_scenes

    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, count=120, heldout=24, seed=3)
    before = times_of_files(folder)
    yield folder
    assert times_of_files(folder) == before, "a test changed the shared scenes"


def times_of_files(folder: Path) -> dict[Path, int]:
    """Returns when each file below `folder` was changed."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


MODEL = """
format: 1
seed: 5
model:
  vision:    {width: 32, depth: 2, heads: 2, patch: 8, image_size: 24, feature_layer: -1}
  connector: {kind: mlp2x_gelu}
  text:      {width: 32, depth: 2, heads: 2, kv_heads: 1, mlp: 48, context: 256}
  tokenizer: {from: tokenizer.model, kind: sentencepiece}
  chat:      {template: vicuna_v1, image_fit: pad}
data:
  captions:  {kind: llava, records: pretrain.json, images: ., template: plain, image_fit: crop}
  questions: {kind: llava, records: finetune.json, images: ., template: vicuna_v1, image_fit: pad}
  heldout:   {kind: llava, records: heldout.json, images: ., template: vicuna_v1, image_fit: pad}
  heldout_captions: {kind: llava, records: heldout_captions.json, images: ., template: plain, image_fit: pad}
"""

PLUGINS = """
plugins:
  directed_token: {place: end}
  image_order:    {grid: 3, permutations: 5}
  text_order:     {}
  guided_loss:    {}
"""

STAGES = """
stages:
  pretrain:
    data:   {captions: 1.0}
    batch:  {samples: 4}
    length: {steps: 6}
    train:  {vision: {}, connector: {}, text: {}, plugins: {}}
    optim:  {lr: 2.0e-3, weight_decay: 0.01, clip: 1.0, warmup: 0.1}
    losses: {next_token: 1.0, image_order: 1.0, text_order: 1.0, guided_loss: 0.5}
  finetune:
    data:   {questions: 1.0}
    batch:  {samples: 4}
    length: {steps: 6}
    train:  {connector: {}, text: {lr: 1.0e-3}, plugins: {}}
    optim:  {lr: 2.0e-3, clip: 1.0, warmup: 0.1}
    losses: {next_token: 1.0, image_order: 1.0, guided_loss: 0.5}
"""

REST = """
evaluate:
  controls: [blank, swapped]
  tasks:
    answers: {kind: questions, data: heldout, max_new_tokens: 4}
    terms:   {kind: terms, data: heldout}
    restore: {kind: restore, data: heldout_captions, stage: pretrain, samples: 4, max_new_tokens: 24}
output: {save_every: 3, keep: 2, images_every: 6}
speed: {tokens: 4096, threads: 1, image_cache_mb: 16}
"""

DIRECT = MODEL + PLUGINS + STAGES + REST
WEIGHTLESS = "{next_token: 1.0}"
PLAIN = (
    MODEL
    + "".join(
        line if "losses:" not in line else f"    losses: {WEIGHTLESS}\n"
        for line in STAGES.splitlines(keepends=True)
    )
    + REST.replace(
        "    restore: {kind: restore, data: heldout_captions, stage: pretrain, samples: 4, max_new_tokens: 24}\n",
        "",
    )
)


@pytest.fixture(scope="session")
def answering(scenes, tmp_path_factory) -> Path:
    """Returns the run of a random model with room for long answers. Tests share it: they write elsewhere."""
    from lmmkit.training.run import train

    sets = [f"stages.{stage}.length.steps=1" for stage in ("pretrain", "finetune")]
    text = PLAIN.replace("  controls: [blank, swapped]\n", "")
    recipe = read_text(
        text,
        name="tiny.yaml",
        overrides=[*sets, "model.text.context=1400", "output.save_every=0"],
        root=scenes,
    )
    return train(recipe, out=tmp_path_factory.mktemp("answering") / "run").run.path


@pytest.fixture(scope="session")
def official(tmp_path_factory) -> Path:
    """Returns the folder of all benchmarks' files. Tests share it: one that changes files writes its own."""
    from tests.support.official_benchmarks import write_official

    return write_official(tmp_path_factory.mktemp("official"))


@pytest.fixture
def tiny(scenes):
    """tiny(text=DIRECT, *overrides) -> a recipe on the scenes."""

    def read(*overrides: str, text: str = DIRECT) -> Recipe:
        return read_text(text, name="tiny.yaml", overrides=overrides, root=scenes)

    return read
