"""Stored log-probabilities: the values of the records, their names, and a run that compares with them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lmmkit_zoo.distill import DistillStored
from typer.testing import CliRunner

from lmmkit.api import Sample
from lmmkit.cli import app
from lmmkit.errors import UserError
from lmmkit.inference.load import load
from lmmkit.inference.record_scores import score_names, scored_records, stored_rows
from lmmkit.plan.dry_run.run import plugin_problems
from lmmkit.plan.prepare import prepare
from lmmkit.weights.weights_hash import weights_hash
from tests.training.test_reference import DPO, REDUCER, TEXT, WHOLE, preferred, run

STORED = """
from dataclasses import dataclass, replace
from lmmkit_zoo.dpo import Dpo
from lmmkit.api import hookimpl

@dataclass(frozen=True, kw_only=True)
class Stored(Dpo):
    @property
    def needs(self):
        return tuple(self.read(role, "policy") for role in self.roles[:2])
    def count(self, batch):
        return batch.samples_with(*self.needs)
    def views(self, sample, rng):
        made = super().views(sample, rng)
        return [replace(v, labels={"ref": sample.meta.get(f"logp_dpo_{v.role}", 0.0)}) for v in made]
    def rewards(self, ctx, better, worse):
        refs = ctx.label("ref").view(-1, 2)
        a, b = ctx.by_sample(self.read(better, "policy"), self.read(worse, "policy"))
        return self.beta * (a - refs[:, 0]), self.beta * (b - refs[:, 1])

@hookimpl
def lmmkit_components():
    return {"stored": Stored}
"""


@pytest.fixture
def written(tiny, scenes, tmp_path):
    """Returns (recipe of DPO, recipe of the stored kind, records file to write), on records with two answers."""
    rows = json.loads((scenes / "finetune.json").read_text())[:24]
    for i, row in enumerate(rows):
        row["rejected"] = ("a blue square", "no")[i % 2]
    records = tmp_path / "pairs.json"
    records.write_text(json.dumps(rows))
    (tmp_path / "stored.py").write_text(STORED)
    text = (
        TEXT.replace("TRAIN", WHOLE)
        .replace("crop: 0.3, ", "")
        .replace("records: finetune.json", f"records: {records}")
    )
    kind = text.replace("dpo.py:dpo'", "X").replace("    reference: start\n", "")
    kind = (
        kind[: kind.index("{use: '")]
        + f"{{use: '{tmp_path}/stored.py:stored', beta: 0.5}}\n"
        + kind[kind.index("stages:") :]
    )
    return tiny(text=text), kind, tmp_path / "rows.jsonl", tmp_path


def test_a_run_that_compares_with_stored_values_is_one_with_the_reference(written, tiny):
    recipe, kind, rows, folder = written
    whole = run(recipe, folder / "whole")
    (folder / "kind.yaml").write_text(kind)
    words = [
        "reference", whole.model("first"), folder / "kind.yaml", "--stage", "prefer", "--out", rows, "--trust-files",
        "--root", recipe.root,
    ]  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, (result.output, result.exception)
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(found) == 24 and {each["reference"] for each in found} == {weights_hash(whole.model("first"))}
    again = CliRunner().invoke(app, list(map(str, words)))
    assert again.exit_code == 2 and "reference/exists" in again.output
    assert not list(folder.glob(".*")), "no file is left"
    missing = CliRunner().invoke(app, [*map(str, words[:-6]), "--stage", "absent", *map(str, words[5:])])
    assert missing.exit_code == 2 and "absent" in missing.output
    stored = run(tiny(text=kind.replace("pairs.json", "rows.jsonl")), folder / "stored")
    assert preferred(stored) == pytest.approx(preferred(whole), rel=1e-4)
    assert preferred(stored)[0] == pytest.approx(0.693147, rel=1e-4)


def test_a_model_with_a_reducer_from_a_local_file_scores_records(written, tiny):
    _, kind, rows, folder = written
    kept = f"plugins:\n  kept: {{use: '{REDUCER}:keep_tokens', count: 5}}\n"
    text = kind.replace("plugins:\n", kept).replace("mlp2x_gelu", "mlp2x_gelu, reduce: kept")
    recipe = tiny("stages.first.length.steps=1", text=text)
    model = run(recipe, folder / "run", stage="first").model("first")
    (folder / "kind.yaml").write_text(text)
    words = [
        "reference",
        model,
        folder / "kind.yaml",
        "--stage",
        "prefer",
        "--out",
        rows,
        "--root",
        recipe.root,
    ]
    result = CliRunner().invoke(app, [*map(str, words), "--trust-files"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert len(rows.read_text().splitlines()) == 24


def test_the_scores_are_those_of_one_record_at_a_time(written, tiny):
    recipe, kind, _, folder = written
    model = run(tiny("stages.first.length.steps=1", text=kind), folder / "run", stage="first").model("first")
    objective, device = load(model).objective, torch.device("cpu")
    lines = []
    for tokens in (1, 4096):
        prepared = prepare(tiny(f"speed.tokens={tokens}", text=kind), trust_files=True)
        assert list(score_names(prepared, "prefer")) == ["logp_dpo_chosen", "logp_dpo_rejected"]
        lines.append(list(scored_records(prepared, "prefer", objective, device, Counter())))
    for alone, together in zip(*lines, strict=True):
        for name in ("logp_dpo_chosen", "logp_dpo_rejected"):
            assert alone[name] == pytest.approx(together[name], rel=1e-5) and alone[name] < 0
        assert alone["id"] == together["id"] and "conversations" in alone
    with pytest.raises(UserError, match="reference/no-scores"):
        score_names(prepared, "first")


OF_STEP = Path(__file__).parents[1] / "support" / "sound_plugins" / "other_of_the_step.py"


def test_views_from_samples_of_a_step_cannot_be_scored(written, tiny):
    kind = written[1]
    text = kind.replace("plugins:\n", f"plugins:\n  near: {{use: '{OF_STEP}:mistake'}}\n", 1)
    prepared = prepare(tiny("stages.prefer.losses.near=0.1", text=text), trust_files=True)
    with pytest.raises(UserError, match="reference/no-scores") as error:
        score_names(prepared, "prefer")
    assert "views of near from other samples of a step" in error.value.problems[0].got


BESIDE = """
from dataclasses import dataclass
from lmmkit.api import LogProb, Loss, Select, hookimpl

@dataclass(frozen=True, kw_only=True)
class Beside(Loss):
    needs = (LogProb(Select(supervised=True)),)

    def count(self, batch):
        return batch.samples_with(*self.needs)

    def labels(self, sample, dims):
        return {"ref": sample.meta.get("logp_main", 0.0)}

    def value(self, ctx):
        (own,) = ctx.by_sample(*self.needs)
        return (own - ctx.label("ref")).abs().sum()

@hookimpl
def lmmkit_components():
    return {"beside": Beside}
"""


def test_the_labels_of_a_loss_read_what_was_stored(tiny, tmp_path):
    (tmp_path / "beside.py").write_text(BESIDE)
    plugin = f"beside: {{use: '{tmp_path}/beside.py:beside'}}"
    text = (
        TEXT.replace("TRAIN", WHOLE).replace("    reference: start\n", "").replace("dpo: 1.0", "beside: 1.0")
    )
    text = text.replace(f"dpo: {{use: '{DPO}:dpo', crop: 0.3, beta: 0.5}}", plugin)
    recipe, rows = tiny("stages.first.length.steps=1", text=text), tmp_path / "rows.jsonl"
    model = run(recipe, tmp_path / "run", stage="first").model("first")
    (tmp_path / "beside.yaml").write_text(text)
    words = [
        "reference",
        model,
        tmp_path / "beside.yaml",
        "--stage",
        "prefer",
        "--out",
        rows,
        "--trust-files",
    ]
    result = CliRunner().invoke(app, list(map(str, [*words, "--root", recipe.root])))
    assert result.exit_code == 0, (result.output, result.exception)
    stored = {row["id"]: row["logp_main"] for row in map(json.loads, rows.read_text().splitlines())}
    assert len(stored) == 120 and max(stored.values()) < 0

    def of_step(records):
        """Returns the labels, and the sum of the differences to what the model of the run computes."""
        prepared = prepare(tiny(f"data.questions.records={records}", text=text), trust_files=True)
        objective = load(model).objective.eval()
        objective.terms = prepared.plans["prefer"].terms
        (batch,) = prepared.pipeline("prefer").step(0)
        ids = [key.rpartition(":")[2] for _, key in batch.views]
        return ids, batch.labels["beside/ref"].tolist(), float(objective(batch).sums["beside"].detach())

    ids, labels, value = of_step(rows)
    assert labels == pytest.approx([stored[each] for each in ids], rel=1e-6)
    assert value < 1e-4 * -sum(labels), "the same model has the same log-probabilities"
    _, without, far = of_step("finetune.json")
    assert without == [0.0] * len(labels) and far == pytest.approx(-sum(labels), rel=1e-4)


def test_stored_tokens_are_read_as_they_were_written():
    tokens, logp = np.arange(12).reshape(4, 3) * 30_000, -np.random.default_rng(0).random((4, 3)).astype("f4")
    term = DistillStored(name="stored", field="mine")
    found = term.labels(Sample(key="s", turns=(), meta={"mine": stored_rows(tokens, logp)}), None)
    assert found["tokens"].tolist() == tokens.tolist() and np.array_equal(found["logp"], logp)
    empty = term.labels(Sample(key="s", turns=(), meta={"mine": stored_rows(tokens[:0], logp[:0])}), None)
    assert empty["tokens"].shape == empty["logp"].shape == (0, 3)
    with pytest.raises(ValueError, match="sample s has no `mine`: write it by `lmmkit reference --top-k`"):
        term.labels(Sample(key="s", turns=()), None)


def test_the_likeliest_tokens_of_a_model_are_those_to_which_it_has_no_distance(tiny, tmp_path):
    plugin = f"stored: {{use: '{DPO.with_name('distill.py')}:distill_stored'}}"
    text = (
        TEXT.replace("TRAIN", WHOLE).replace("    reference: start\n", "").replace("dpo: 1.0", "stored: 1.0")
    )
    text = text.replace(f"dpo: {{use: '{DPO}:dpo', crop: 0.3, beta: 0.5}}", plugin)
    plain = text.replace("plugins:\n", "").replace(f"  {plugin}\n", "").replace(", stored: 1.0", "")
    recipe, rows = tiny("stages.first.length.steps=1", text=plain), tmp_path / "rows.jsonl"
    model = run(recipe, tmp_path / "run", stage="first").model("first")
    (tmp_path / "plain.yaml").write_text(plain)
    words = [
        "reference",
        model,
        tmp_path / "plain.yaml",
        "--stage",
        "prefer",
        "--out",
        rows,
        "--root",
        recipe.root,
    ]
    words = list(map(str, words))
    for k in ("0", "1000"):
        refused = CliRunner().invoke(app, [*words, "--top-k", k])
        assert refused.exit_code == 2 and "reference/no-scores" in refused.output, refused.output
    result = CliRunner().invoke(app, [*words, "--top-k", "7"])
    assert result.exit_code == 0, (result.output, result.exception)
    stored = {row["id"]: row["top_k"] for row in map(json.loads, rows.read_text().splitlines())}
    assert len(stored) == 120 and {text.split()[0] for text in stored.values()} == {"7"}
    prepared = prepare(tiny(f"data.questions.records={rows}", text=text), trust_files=True)
    objective = load(model).objective.eval()
    objective.terms = prepared.plans["prefer"].terms
    (batch,) = prepared.pipeline("prefer").step(0)
    n = batch.count["stored"]
    assert n == batch.count["next_token"] > 10
    assert abs(float(objective(batch).sums["stored"].detach())) < 1e-5 * n
    with torch.no_grad():
        objective.lmm.decoder.head.weight.mul_(1.5)
    assert float(objective(batch).sums["stored"].detach()) > 0.01 * n
    assert plugin_problems(prepared) == []
    for text_of in stored.values():
        rows.write_text(rows.read_text().replace(text_of, "7 "))
    (problem,) = plugin_problems(prepare(tiny(f"data.questions.records={rows}", text=text), trust_files=True))
    assert problem.code == "plugin/label" and "0 values, and" in problem.got
