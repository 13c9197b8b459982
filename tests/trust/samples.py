"""Samples of wrong input, for each error code that no other test names. Their problems are collected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from typer.testing import CliRunner

import lmmkit.errors
from lmmkit.api.sample import Image, Sample, Turn
from lmmkit.cli import app
from lmmkit.data.chat_templates import lay_out
from lmmkit.data.fits.rows import FixedRows
from lmmkit.data.sampler import Sampler
from lmmkit.data.text_tokenizers.choose import open_tokenizer
from lmmkit.errors import LmmkitError, Problem
from lmmkit.inference.load import load
from lmmkit.recipe import from_mapping, read_recipe, read_text
from lmmkit.runs.run_folder import RunFolder
from lmmkit.runs.run_lock import lock
from lmmkit.training.checkpoint import disk_space, manifest
from lmmkit.training.monitoring import anomalies
from lmmkit.training.step import StepReport
from lmmkit.weights import model_folder
from tests.support.hostile_home import RECIPE, Home, row
from tests.trust.hostile_data import RANKS, json_tokenizer, png
from tests.trust.hostile_runs import newest, sign
from tests.trust.test_recipe_fuzz import schema_mutants

PLUGINS = """
from __future__ import annotations
from dataclasses import dataclass
from lmmkit.api import AttnMass, AttnTo, AuxTask, HiddenAt, LogProb, Loss, Select, TokenStrategy, View, hookimpl

@dataclass(frozen=True, kw_only=True)
class Masses(Loss):
    kind: str = "image"
    @property
    def needs(self):
        every = () if self.kind == "image" else (AttnTo(q=Select(supervised=True), k=Select()),)
        return (AttnMass(q=Select(supervised=True), k=Select(kind=self.kind)), *every)
    def value(self, ctx):
        return ctx[self.needs[0]].sum()

@dataclass(frozen=True, kw_only=True)
class NoView(Loss):
    needs = (HiddenAt(Select(view="nowhere", token_name="absent")), HiddenAt(Select(view_role="chosen")), LogProb(Select(kind="image")))
    def value(self, ctx):
        return ctx[self.needs[0]].sum()

@dataclass(frozen=True, kw_only=True)
class Unread(AuxTask):
    def views(self, sample, rng):
        return [View(sample=sample)]

@dataclass(frozen=True, kw_only=True)
class Provider(TokenStrategy):
    provides = ("drt",)
    def edit(self, view):
        return []

@dataclass(frozen=True, kw_only=True)
class Old(Loss):
    api = 0

@hookimpl
def lmmkit_components():
    return {"masses": Masses, "no_view": NoView, "unread": Unread, "provider": Provider, "old": Old}
"""


@contextmanager
def collected() -> Iterator[list[Problem]]:
    """Collects the problems of every error that is raised inside."""
    found: list[Problem] = []
    made = LmmkitError.__init__

    def keep(self, problems):
        made(self, problems)
        found.extend(self.problems)

    lmmkit.errors.LmmkitError.__init__ = keep  # type: ignore[method-assign]
    try:
        yield found
    finally:
        lmmkit.errors.LmmkitError.__init__ = made  # type: ignore[method-assign]


def command(home: Home, *words: object) -> None:
    """Runs a command that must end with a problem. HERE in an argument is the folder of the sample."""
    result = CliRunner().invoke(app, [str(word).replace("HERE", str(home.path)) for word in words])
    assert result.exit_code in (2, 3), (words, result.exit_code, result.output, result.exception)


def tried(call: Callable[[], object]) -> None:
    """Calls a function that must raise an `LmmkitError`."""
    try:
        call()
    except LmmkitError:
        return
    raise AssertionError("no problem was found")


def recipes(home: Home) -> None:
    for text in list(schema_mutants())[::7]:
        with suppress(LmmkitError):
            read_text(text, name="mine.yaml")
    for text in (
        "",
        "a: &a 1",
        "a: !x 1",
        "a: 1\na: 2",
        "a: {",
        RECIPE.replace("rows: 1.0", "absent: 1.0"),
        RECIPE.replace("heads: 2", "heads: 3"),
    ):
        tried(lambda text=text: read_text(text, name="mine.yaml"))
    tried(lambda: read_text(RECIPE, overrides=["nothing"]))
    tried(lambda: from_mapping([]))  # type: ignore[arg-type]
    tried(lambda: read_recipe(home.path / "absent.yaml"))


def records(home: Home) -> None:
    def talk(*turns: tuple[str, object]) -> dict[str, object]:
        return {"conversations": [{"from": who, "value": text} for who, text in turns]}

    bad = [
        row(id=1.5), row(image=3), row(image="../x"), row(**talk()), row(**talk(("robot", "x"))), row(**talk(("human", 3))),
        row(**talk(("human", "<image>x"), ("human", "x"))), row(**talk(("human", "<image>x"), ("gpt", " "))),
        row(**talk(("human", "x"), ("gpt", "x"))), row(id="\ud800"), 3, row(**talk(("human", "<image>" + "x" * 2_000_000), ("gpt", "x"))),
        row(video="x"), row(images=["b.png"]), {"messages": []}, row(**talk(("human", ""), ("gpt", "x"))),
        row(**talk(("human", "<image>x"), ("gpt", "x"), ("system", "x"))),
        row(conversations=[{"from": "human", "value": "<image>x"}, {"from": "gpt", "value": "x", "weight": 2}]),
    ]  # fmt: skip
    home.rows(*bad)
    command(home, "check", home.recipe, "--root", home.path)
    for content in (b"[1", b"[]", b"\xff\xfe", b'[{"id": "1", "id": "2"}]'):
        (home.data / "rows.json").write_bytes(content)
        command(home, "check", home.recipe, "--root", home.path)
    home.rows(row(image="absent.png"))
    command(home, "check", home.recipe, "--root", home.path)


def images(home: Home) -> None:
    home.rows(row())
    for content in (png(50_000, 50_000), png(1, 60_000), b"<html>", png(40, 40)[:50]):
        (home.data / "a.png").write_bytes(content)
        command(
            home,
            "data",
            "check",
            home.recipe,
            "--root",
            home.path,
            "--decode",
            "--report",
            home.path / "bad.jsonl",
        )


def tokenizers(home: Home) -> None:
    folder = home.path / "words"
    folder.mkdir()
    tried(lambda: open_tokenizer(folder, "evil"))
    for file, content in (
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", json_tokenizer()),
        ("tokenizer.model", b"x"),
        ("x.tiktoken", b"x"),
    ):
        (folder / file).write_bytes(content)
        tried(lambda file=file: open_tokenizer(folder / file))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    split = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+(a+)+(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    (folder / "tokenizer.json").write_bytes(json_tokenizer(pre_tokenizer=split))
    tokenizer = open_tokenizer(folder / "tokenizer.json")
    tried(lambda: tokenizer.encode("a" * 5000 + "!"))
    assert RANKS


def layouts(home: Home) -> None:
    tokenizer = open_tokenizer(home.data / "tokenizer.model")
    good = Sample(
        key="k",
        turns=(Turn("user", "x"), Turn("assistant", "y")),
        images=(),
        template="plain",
        image_fit="pad",
    )
    tried(lambda: lay_out(good, tokenizer, rows_of=FixedRows(4), after_eos="evil"))  # type: ignore[arg-type]
    tried(lambda: lay_out(replace(good, images=(Image("a"),)), tokenizer, rows_of=FixedRows(0)))
    tried(lambda: lay_out(replace(good, template="chatml"), tokenizer, rows_of=FixedRows(4)))
    tried(lambda: Sampler({"a": 0}, {"a": 1.0, "b": -1.0}, 1))
    tried(lambda: Sampler({"a": 1}, {"a": 0.0}, 1))


def plugins(home: Home) -> None:
    (home.path / "mine.py").write_text(PLUGINS)
    uses = {
        "a": "masses", "b": "masses", "c": "no_view", "d": "unread", "e": "provider", "f": "provider",
    }  # fmt: skip
    words = ", ".join(
        f"{name}: {{use: './mine.py:{use}'{', kind: text' if name == 'b' else ''}}}"
        for name, use in uses.items()
    )
    home.edit("plugins: {}", f"plugins: {{{words}}}")
    home.edit("{next_token: 1.0}", "{next_token: 1.0, a: 1.0, b: 1.0, c: 1.0, d: 1.0}")
    command(home, "check", home.recipe, "--root", home.path, "--trust-files")
    command(home, "plugins", "explain", home.path / "mine.py", "--trust-files")
    command(home, "plugins", "trace", home.recipe, "--root", home.path, "--stage", "absent")


def settings(home: Home) -> None:
    for written in ("permutations: 5, seed: -7", "permutations: 1000000000"):
        home.recipe.write_text(
            RECIPE.replace("plugins: {}", f"plugins: {{image_order: {{grid: 3, read: visual, {written}}}}}")
        )
        home.edit("{next_token: 1.0}", "{next_token: 1.0, image_order: 1.0}")
        command(home, "check", home.recipe, "--root", home.path)


def learned_tokens(home: Home) -> None:
    """Uses a model with a learned token in every sequence."""
    home.edit(
        "plugins: {}",
        "plugins: {directed_token: {place: before_response}, image_order: {grid: 3, permutations: 5}}",
    )
    home.edit("{next_token: 1.0}", "{next_token: 1.0, image_order: 1.0}")
    home.edit("text: {}}", "text: {}, plugins: {}}")
    run = home.path / "out"
    words = ("train", home.recipe, "--root", home.path, "--out", run)
    assert CliRunner().invoke(app, list(map(str, words))).exit_code == 0
    tried(lambda: load(run).logits(torch.zeros(1, 3, dtype=torch.int64)))
    command(home, "model", "export", run, "HERE/hub", "--format", "llava-hf")
    (home.path / "locked" / "lock").mkdir(parents=True)
    tried(lambda: lock(RunFolder(home.path / "locked")).__enter__())


def commands(home: Home) -> None:
    command(home, "data", "show", home.recipe, "absent", "--root", home.path)
    command(home, "data", "show", home.recipe, "rows", "--record", 99, "--root", home.path)
    command(home, "recipes", "copy", "absent")
    command(home, "bench", "kernels", home.recipe, "--root", home.path, "--stage", "absent")
    command(home, "data", "make-scenes", home.recipe / "x", "--count", 120, "--heldout", 24)
    command(home, "train", home.recipe, "--root", home.path, "--out", home.recipe / "run")
    home.edit("steps: 2}", "epochs: 1}")
    home.edit("batch:  {samples: 2}", "batch:  {samples: 9, tail: drop}")
    command(home, "train", home.recipe, "--root", home.path, "--out", "HERE/out")


def runs(home: Home) -> None:
    run = home.with_("run")
    model = run / "model" / "learn"
    tried(lambda: load(run).reply([Turn("user", "x" * 9000)]))
    (run / "results.json").unlink(missing_ok=True)
    (run / "metrics.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    command(home, "train", home.recipe, "--root", home.path, "--out", run, "--resume")
    (run / "run.json").write_text("{}")
    command(home, "eval", run)
    config = json.loads((model / "config.json").read_text())
    for changes in ({"inference_plugins": ["absent"]}, {"format": "lmmkit-model-9"}, {"stage": 3}):
        (model / "config.json").write_text(json.dumps(config | changes))
        with suppress(LmmkitError):
            load(model)
        with suppress(LmmkitError):
            model_folder.config_of(model)
    (model / "config.json").write_text(json.dumps(config))
    command(home, "model", "export", model, home.data, "--format", "llava-hf")
    command(home, "model", "export", model, "HERE/out", "--format", "llava-hf", "--base", "x")
    command(home, "model", "export", home.with_("hf"), "HERE/out")
    text = (model / "recipe.yaml").read_text()
    (model / "recipe.yaml").write_text(
        text.replace("kind: mlp2x_gelu", "kind: linear").replace("width: 16", "width: 32")
    )
    tried(lambda: load(model))
    shutil.rmtree(model)
    command(home, "chat", run, "--prompt", "x")
    home.edit("evaluate:\n  tasks: {answers: {kind: questions, data: rows, max_new_tokens: 2}}\n", "")
    recipe = read_recipe(home.recipe, root=home.path)
    from lmmkit.evaluate.run import evaluate

    tried(lambda: evaluate(RunFolder(run), recipe))


def checkpoints(home: Home) -> None:
    folder = newest(home)
    sign(folder, {"schema": 9})
    tried(lambda: manifest.read(folder))
    sign(folder, {"schema": 1})
    tried(lambda: _raise(manifest.mismatches(folder, {"model.x": torch.zeros(3)})))
    run = RunFolder(home.path / "run")
    (home.path / "file").write_text("")
    tried(lambda: disk_space.check_space(run, 10**18))
    report = StepReport(loss=float("nan"), terms={}, grad_norm=1.0, tokens=1)
    tried(lambda: _raise([anomalies.exhausted("step 1", anomalies.SpikeDetector(), report, {"rows": ["a"]})]))


def _raise(problems) -> None:
    raise lmmkit.errors.UserError(problems)


def public(home: Home) -> None:
    folder = home.with_("hf")
    for names in ({}, {"weight_map": {"a": "absent.safetensors"}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(names))
        command(home, "model", "import", folder, "HERE/out")
    (folder / "model.safetensors.index.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    command(home, "chat", folder, "--prompt", "x")
    original = {**config["text_config"], "model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu"}
    (folder / "config.json").write_text(json.dumps(original))
    command(home, "chat", folder, "--prompt", "x")
    home.edit(
        "{width: 16, depth: 2, heads: 2, patch: 8, image_size: 24, feature_layer: -1}",
        "{from: run/model/learn, image_size: 32}",
    )
    home.with_("run")
    command(home, "check", home.recipe, "--root", home.path)


SAMPLES = (
    recipes,
    records,
    images,
    tokenizers,
    layouts,
    plugins,
    settings,
    learned_tokens,
    commands,
    runs,
    checkpoints,
    public,
)


def home_for(sample: Callable[[Home], None], folder: Path, base: Path) -> Home:
    from tests.support.hostile_home import home_in

    return home_in(folder / sample.__name__, base)
