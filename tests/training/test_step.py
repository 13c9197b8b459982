"""Steps without anything to learn from: no value, no update, counted, and reported to the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmmkit.cli import app
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training import stage_loop
from lmmkit.training.run import train
from lmmkit.training.step import run_step
from tests.conftest import PLAIN
from tests.training.monitoring.test_anomalies import bits
from tests.training.test_resume import of_micro_batches

SHORT = (
    "stages.pretrain.length.steps=1", "stages.finetune.length.epochs=1", "stages.finetune.batch.samples=1",
    "stages.finetune.optim.weight_decay=0.5", "stages.finetune.batch.too_long=drop", "output.save_every=2",
)  # fmt: skip


@pytest.fixture
def mostly_long(scenes, tmp_path):
    return of_mostly_long(scenes, tmp_path)


def of_mostly_long(scenes: Path, tmp_path: Path) -> str:
    """Returns the change of a recipe to a source of two short and four long records."""
    (good, *_) = json.loads((scenes / "finetune.json").read_text())
    turns = good["conversations"][:2]
    long = [turns[0] | {"value": turns[0]["value"] + " why" * 400}, turns[1]]
    records = [{**good, "id": str(i), "conversations": long if i < 4 else turns} for i in range(6)]
    (tmp_path / "long.json").write_text(json.dumps(records))
    return f"data.questions.records={tmp_path / 'long.json'}"


def without_epochs(text: str) -> str:
    """Returns the recipe without the length of its second stage, which `SHORT` gives."""
    head, _, tail = text.rpartition("    length: {steps: 6}\n")
    return f"{head}    length: {{}}\n{tail}"


def test_an_empty_step_has_no_value_and_updates_nothing(tiny, tmp_path, mostly_long, monkeypatch, capsys):
    unchanged = []

    def watched(objective, optimizer, step, weights, **kwargs):
        before = bits(objective, optimizer)
        report = run_step(objective, optimizer, step, weights, **kwargs)
        unchanged.append(bits(objective, optimizer) == before)
        assert report.empty == (report.loss is None) == (report.grad_norm is None) == unchanged[-1]
        return report

    monkeypatch.setattr(stage_loop, "run_step", watched)
    recipe = tiny(mostly_long, *SHORT, text=without_epochs(PLAIN))
    finished = train(recipe, out=tmp_path / "run")
    assert unchanged.count(True) == 4 and not unchanged[0], "the first stage learns in its only step"
    lines = finished.run.read_metrics()[1:]
    empty = [line for line in lines if line["loss"] is None]
    assert len(lines) == 6 and len(empty) == 4 and not any(line["loss"] == 0 for line in lines)
    for line in empty:
        assert line["grad_norm"] is None and line["terms/next_token"] is None
        assert (line["dropped/empty_steps"], line["dropped/too_long"], line["dropped/records"]) == (1, 1, 1)
    assert finished.dropped == {"too_long": 4, "records": 4, "empty_steps": 4}
    assert not finished.run.anomalies.exists()
    assert capsys.readouterr().err.count("nothing to learn from") == 1


def test_what_was_left_out_is_counted_across_a_resume(tiny, tmp_path, mostly_long, monkeypatch):
    recipe = tiny(mostly_long, *SHORT, text=without_epochs(PLAIN))
    patched, calls = stage_loop.run_step, []

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return patched(*args, **kwargs)

    monkeypatch.setattr(stage_loop, "run_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "run")
    monkeypatch.undo()
    finished = train(recipe, out=tmp_path / "run", resume=True)
    assert finished.dropped == {"too_long": 4, "records": 4, "empty_steps": 4}


def test_check_and_the_last_line_of_train_report_what_the_context_costs(scenes, tmp_path, mostly_long):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(without_epochs(PLAIN))

    def shown(*command: str, code: int = 0, changes=()) -> str:
        words = [word for change in (mostly_long, *SHORT, *changes) for word in ("--set", change)]
        result = CliRunner().invoke(app, [*command, str(recipe), "--root", str(scenes), *words])
        assert result.exit_code == code, result.output
        return result.stdout

    assert "stage finetune: of the first 4 records: " in " ".join(shown("check").split())
    found = json.loads(shown("check", "--json"))["stages"]
    assert found["pretrain"]["dropped"] == {} and found["finetune"]["records"] == 4
    assert found["finetune"]["dropped"]["records"] >= 2
    out = shown("train", "--out", str(tmp_path / "run"))
    last = " ".join(out.split("done: ")[-1].split())
    assert "4 records of which nothing is left" in last
    assert "4 steps without anything to learn from, which updated nothing" in last
    assert len(RunFolder(tmp_path / "run").read_metrics()) == 7


def test_a_context_without_room_for_any_answer_is_reported_by_check_and_trace(scenes, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(PLAIN)
    words = [str(recipe), "--root", str(scenes), "--set", "model.text.context=14"]
    for stage in ("pretrain", "finetune"):
        words += ["--set", f"stages.{stage}.batch.too_long=truncate"]
    result = CliRunner().invoke(app, ["check", *words, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["stages"]["finetune"]
    assert found["records"] == 16 and found["supervised"] == 0
    assert found["dropped"] == {"truncated": 16, "no_target": 16, "records": 16}
    result = CliRunner().invoke(app, ["plugins", "trace", *words, "--stage", "finetune", "--samples", "1"])
    assert result.exit_code == 0 and "image[9]" not in result.stdout and "view main" not in result.stdout
    assert "1 record of which nothing is left, 1 view cut to the context" in " ".join(result.stdout.split())
    result = CliRunner().invoke(
        app, ["plugins", "trace", *words[:3], "--stage", "finetune", "--samples", "1"]
    )
    assert "view main" in result.stdout and "nothing is left" not in result.stdout


def test_a_term_that_does_not_add_up_is_the_mean_over_micro_batches(tiny, tmp_path, monkeypatch):
    """Computes each micro-batch alone, from the model before the step."""
    before: list[list[float]] = []

    def watched(objective, optimizer, step, weights, **kwargs):
        terms = [term for term in objective.terms if not term.additive]
        alone = [objective(batch, kwargs["now"]).ctxs for batch in step if terms]
        before.append([float(term.value(ctxs[term.name]).detach()) for ctxs in alone for term in terms])
        return run_step(objective, optimizer, step, weights, **kwargs)

    monkeypatch.setattr(stage_loop, "run_step", watched)
    found = {}
    for tokens in (4096, 250, 1):
        text = of_micro_batches("1.0").replace("batch:  {samples: 4}", "batch:  {samples: 6}")
        short = ("stages.pretrain.length.steps=1", "stages.finetune.length.steps=1", "output.images_every=0")
        recipe = tiny(*short, f"speed.tokens={tokens}", text=text)
        line = train(recipe, out=tmp_path / f"{tokens}", trust_files=True).run.read_metrics()[-1]
        values = before[-1]
        assert line["terms/apart"] == pytest.approx(sum(values) / len(values), rel=1e-6)
        assert line["loss"] == pytest.approx(line["terms/next_token"] + line["terms/apart"], rel=1e-6)
        found[len(values)] = line["terms/apart"]
    assert set(found) >= {1, 6} and len(found) == 3, "three cuts"
    assert found[6] == 0 and len(set(found.values())) == 3, "a sample alone has nothing to compare"
