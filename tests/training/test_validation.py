"""Validation inside a stage looks and touches nothing; the best weights are kept; a stop loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from lmmkit.errors import UserError
from lmmkit.inference.chat_model import ChatModel
from lmmkit.inference.load import load
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import read_text
from lmmkit.runs.files import read_json
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import read
from lmmkit.training.run import train
from lmmkit.training.save_models import merged_tensors
from lmmkit.training.validation import validate_problems
from tests.conftest import DIRECT, PLAIN

TIMES = ("seconds", "tokens_per_second", "val/seconds")
LORA = "stages.finetune.train={connector: {}, text: {lora: {r: 2, alpha: 4, dropout: 0.3}}, plugins: {}}"
SHORT = ("stages.pretrain.length.steps=1", "stages.finetune.length.steps=5", LORA)
ASKED = "stages.finetune.validate={every: 2, data: heldout, samples: 6, tasks: [answers], best: next_token}"
TASK = "evaluate.tasks.answers={kind: questions, data: heldout, samples: 4, max_new_tokens: 3}"


def lines(run: RunFolder) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in run.read_metrics()]


@pytest.fixture(scope="module")
def runs(scenes, tmp_path_factory):
    """Returns a run with dropout, the same run with validation, and the recipe of the latter."""
    folder = tmp_path_factory.mktemp("validate")
    plain, asked = (
        read_text(DIRECT, overrides=(*SHORT, TASK, "output.images_every=0", *more), root=scenes)
        for more in ((), (ASKED, "output.images_every=2"))
    )
    return train(plain, out=folder / "plain").run, train(asked, out=folder / "asked").run, asked


def test_a_run_has_the_same_bits_with_validation_and_without(runs):
    plain, asked, _ = runs
    found = lines(asked)
    assert [line for line in found if "loss" in line] == lines(plain)
    for stage in ("pretrain", "finetune"):
        a, b = (run.model(stage) / "model.safetensors" for run in (plain, asked))
        assert a.read_bytes() == b.read_bytes()


def test_held_out_records_that_do_not_fit_give_no_false_loss_and_no_best_model(
    scenes, tiny, tmp_path, capsys
):
    (record, *_) = json.loads((scenes / "heldout.json").read_text())
    question, answer = record["conversations"]
    long = {**record, "conversations": [question | {"value": question["value"] + " why" * 400}, answer]}
    (tmp_path / "long.json").write_text(json.dumps([long] * 3))
    recipe = tiny(
        f"data.heldout.records={tmp_path / 'long.json'}", "stages.pretrain.length.steps=1",
        "stages.finetune.length.steps=1", "stages.finetune.batch.too_long=drop",
        "stages.finetune.validate={every: 1, data: heldout, best: loss}", text=PLAIN,
    )  # fmt: skip
    run = train(recipe, out=tmp_path / "run").run
    (line,) = (line for line in run.read_metrics() if "val/seconds" in line)
    assert not [name for name in line if name.startswith("val/") and name != "val/seconds"]
    assert not run.best("finetune").exists()
    assert "validating on 3 samples of heldout: 3 records of which nothing is left" in capsys.readouterr().err


def test_held_out_losses_and_tasks_are_logged(runs):
    found = [line for line in lines(runs[1]) if "loss" not in line]
    assert [line["step"] for line in found] == [2, 4, 6], "steps of the run, and the stage's last"
    for line in found:
        assert line["stage"] == "finetune"
        terms = {t: line[f"val/terms/{t}"] for t in ("next_token", "image_order", "guided_loss")}
        weighed = terms["next_token"] + terms["image_order"] + 0.5 * terms["guided_loss"]
        assert line["val/loss"] == pytest.approx(weighed)
        assert 0 <= line["val/terms/image_order/accuracy"] <= 1
        assert 0 <= line["val/tasks/answers/accuracy"] <= 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(runs[1].tb))
    board.Reload()
    assert {"val/loss", "val/tasks/answers/accuracy"} <= set(board.Tags()["scalars"])


def test_the_last_validation_is_what_evaluation_says_of_the_model(runs):
    _, run, recipe = runs
    from lmmkit.evaluate.terms import Terms
    from lmmkit.recipe import Task

    chat_model = load(run.model("finetune"), plugins="all", root=recipe.root)
    samples = list(prepare(recipe, data=["heldout"]).sources["heldout"])[:6]
    measured = Terms("terms", Task(data="heldout")).run(chat_model, samples)
    last = lines(run)[-1]
    for name in ("next_token", "image_order", "guided_loss"):
        assert measured[name].value == pytest.approx(last[f"val/terms/{name}"], rel=1e-4)


def test_the_best_weights_are_kept_with_their_step(runs):
    _, run, _ = runs
    found = {line["step"]: line["val/terms/next_token"] for line in lines(run) if "loss" not in line}
    config = read_json(run.best("finetune") / "config.json")
    step = min(found, key=lambda s: found[s])
    assert config["step"] == step and config["best"] == {
        "metric": "val/terms/next_token",
        "value": found[step],
    }
    assert config["stage"] == "finetune"
    if step == 6:
        a, b = (load_file(f / "model.safetensors") for f in (run.best("finetune"), run.model("finetune")))
        assert all(torch.equal(a[k], b[k]) for k in b) and a.keys() == b.keys()
    assert load(run.best("finetune")).stage == "finetune"


def test_low_rank_updates_are_merged_into_what_is_written_alone(tiny):
    from lmmkit import build
    from lmmkit.model.transforms import lora

    recipe = tiny(LORA)
    prepared = prepare(recipe)
    device = torch.device("cpu")
    objective = build.build_objective(prepared.recipe, prepared.instances.components, prepared.dims, device)
    build.set_stage(objective, prepared.plans["finetune"], recipe.stages["finetune"], seed=1)
    for name, parameter in objective.named_parameters():
        if ".lora." in name:
            torch.nn.init.normal_(parameter)
    before = {name: t.clone() for name, t in objective.state_dict().items()}
    written = merged_tensors(objective)
    assert all(torch.equal(before[k], t) for k, t in objective.state_dict().items())
    lora.merge(objective.lmm.decoder)
    merged = merged_tensors(objective)
    assert written.keys() == merged.keys() and all(torch.equal(written[k], merged[k]) for k in merged)


def test_a_stop_in_the_middle_of_a_validation_loses_nothing(runs, tmp_path, monkeypatch):
    _, undisturbed, recipe = runs
    calls = []
    of = ChatModel.of.__func__

    def polled(cls, *args, poll, **kwargs):
        def check():
            calls.append(1)
            if len(calls) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            poll()

        return of(cls, *args, poll=check, **kwargs)

    stop_at = 3
    monkeypatch.setattr(ChatModel, "of", classmethod(polled))
    stopped = train(recipe, out=tmp_path / "run")
    assert stopped.signal == signal.SIGTERM and len(calls) == 3
    saved = read.newest(stopped.run).path
    assert saved is not None and read.step_of(saved) == 2
    assert not any("val/loss" in line for line in lines(stopped.run))
    stop_at = 0
    train(recipe, out=tmp_path / "run", resume=True)
    assert lines(stopped.run) == lines(undisturbed)
    a, b = (r.best("finetune") / "model.safetensors" for r in (stopped.run, undisturbed))
    assert a.read_bytes() == b.read_bytes()


def test_the_best_so_far_survives_a_resume(tiny, tmp_path, monkeypatch):
    from lmmkit.training.validation import Validator

    values = {2: 1.0, 4: 3.0, 6: 2.0}
    monkeypatch.setattr(Validator, "_losses", lambda self, at: {"val/loss": values[at.step]})
    recipe = tiny(
        "stages.pretrain.length.steps=1", "stages.finetune.length.steps=5", "output.save_every=4",
        "stages.finetune.validate={every: 2, data: heldout, samples: 1, best: loss}", text=PLAIN,
    )  # fmt: skip
    whole_run = train(recipe, out=tmp_path / "run").run
    assert read_json(whole_run.best("finetune") / "config.json")["step"] == 2
    for path in whole_run.checkpoints.glob("step-00000006"):
        path.rename(path.with_name(".trash-x"))
    train(recipe, out=whole_run.path, resume=True)
    assert read_json(whole_run.best("finetune") / "config.json")["step"] == 2, "not 6: step 2 was better"


def test_what_cannot_be_validated_is_reported_before_the_run(tiny, tmp_path):
    def codes(asked, *more):
        recipe = tiny(f"stages.finetune.validate={asked}", *more)
        return {(p.code, p.got) for p in validate_problems(prepare(recipe))}

    assert not codes("{every: 2, data: heldout, tasks: [answers, terms], best: answers/accuracy}")
    assert not codes("{every: 2, data: heldout, tasks: [terms], best: terms/image_order}")
    assert codes("{every: 2, data: heldout, best: text_order}") == {("validate/best", "`text_order`")}
    assert codes("{every: 2, data: heldout, tasks: [answers], best: answers/f1}") == {
        ("validate/best", "`answers/f1`")
    }
    (found,) = codes("{every: 2, data: heldout, tasks: [restore]}")
    assert found[0] == "validate/other-stage" and "pretrain" in found[1]
    recipe = tiny("stages.finetune.validate={every: 2, data: heldout, best: text_order}")
    with pytest.raises(UserError, match="validate/best"):
        train(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_held_out_sample_that_is_too_long_is_reported_before_the_first_step(tiny, tmp_path):
    recipe = tiny(
        "stages.pretrain.validate={every: 1, data: heldout, samples: 2}", "model.text.context=45", text=PLAIN
    )
    with pytest.raises(UserError, match="data/too-long"):
        train(recipe, out=tmp_path / "run")
    assert not RunFolder(tmp_path / "run").read_metrics()


def spoilt(scenes, folder):
    """Copies the scenes, with two held-out records whose images cannot be read."""
    root = folder / "scenes"
    shutil.copytree(scenes, root)
    rows = json.loads((root / "heldout.json").read_text())
    for number in (1, 4):
        (root / f"broken-{number}.png").write_bytes(b"no image")
        rows[number]["image"] = f"broken-{number}.png"
    (root / "heldout.json").write_text(json.dumps(rows))
    return root


def test_held_out_rows_that_do_not_read_are_passed_over_where_they_may_be(scenes, tmp_path, capsys):
    root = spoilt(scenes, tmp_path)
    recipe = read_text(DIRECT, overrides=(*SHORT, TASK, ASKED, "data.heldout.bad_records=skip"), root=root)
    run = train(recipe, out=tmp_path / "run").run
    assert [line["step"] for line in lines(run) if "val/loss" in line] == [2, 4, 6]
    err = capsys.readouterr().err
    assert "validating on 6 samples" in err
    for number in (1, 4):
        assert f"passed over {root / 'heldout.json'}" in err and f"broken-{number}.png" in err


def test_otherwise_they_are_reported_before_a_step(scenes, tmp_path):
    recipe = read_text(
        DIRECT, overrides=(*SHORT, TASK, ASKED.replace("finetune", "pretrain")), root=spoilt(scenes, tmp_path)
    )
    with pytest.raises(UserError) as error:
        train(recipe, out=tmp_path / "run")
    assert len(error.value.problems) == 2 and all("heldout.json" in str(p) for p in error.value.problems)
    assert not RunFolder(tmp_path / "run").read_metrics()


def test_a_source_without_a_readable_row_is_refused(scenes, tmp_path):
    root = spoilt(scenes, tmp_path)
    rows = json.loads((root / "heldout.json").read_text())
    (root / "heldout.json").write_text(json.dumps([rows[1], rows[4]]))
    recipe = read_text(DIRECT, overrides=(*SHORT, TASK, ASKED, "data.heldout.bad_records=skip"), root=root)
    with pytest.raises(UserError) as error:
        train(recipe, out=tmp_path / "run")
    assert len(error.value.problems) == 2 and "broken-1.png" in str(error.value)


def test_a_stop_while_held_out_images_are_read_ends_the_run(runs, tmp_path, monkeypatch):
    from lmmkit.evaluate import run as evaluation

    read_unreadable, seen = evaluation._unreadable, []

    def stopping(records, i, reader):
        seen.append(i)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return read_unreadable(records, i, reader)

    monkeypatch.setattr(evaluation, "_unreadable", stopping)
    recipe = read_text(
        DIRECT,
        overrides=(*SHORT, ASKED.replace("samples: 6, tasks: [answers], ", "samples: all, ")),
        root=runs[2].root,
    )
    stopped = train(recipe, out=tmp_path / "run")
    assert stopped.signal == signal.SIGTERM and len(seen) <= evaluation.ROUND
    assert read.step_of(read.newest(stopped.run).path) == 1, "the step before the stage"
