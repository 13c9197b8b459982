"""Steps that are not finite update nothing, are recorded with their rows, and end a run when there are many."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest
import torch

from lmmkit.errors import UserError
from lmmkit.runs.files import read_jsonl
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training import stage_loop
from lmmkit.training.checkpoint import read
from lmmkit.training.monitoring.anomalies import SKIPPED_IN_A_ROW, SKIPPED_IN_ALL, SPIKE_WINDOW, SpikeDetector
from lmmkit.training.monitoring.metrics_log import MetricsLog
from lmmkit.training.run import train
from lmmkit.training.step import StepReport, run_step
from tests.conftest import PLAIN

NAN = float("nan")


def report(loss=1.0, norm=1.0, **terms):
    return StepReport(loss=loss, terms={"next_token": loss, **terms}, grad_norm=norm, tokens=1)


def spoil(monkeypatch, bad, *, gradient=False):
    """Steps number `bad` of a process have a NaN in the loss, or an infinite gradient alone.

    Gives the bits before and after each of them, and the keys of its rows.
    """
    steps = iter(range(1, 10**6))
    before, after, rows = {}, {}, {}

    def spoilt(objective, optimizer, step, weights, **kwargs):
        number = next(steps)
        if number not in bad:
            return run_step(objective, optimizer, step, weights, **kwargs)
        before[number] = bits(objective, optimizer)
        rows[number] = {key for batch in step for _, key in batch.views}
        forward = type(objective).forward

        def nan(self, batch, *now):
            outcome = forward(self, batch, *now)
            sums = dict(outcome.sums)
            sums["next_token"] = _Poison.apply(sums["next_token"]) if gradient else sums["next_token"] * NAN
            return outcome._replace(sums=sums)

        with monkeypatch.context() as patch:
            patch.setattr(type(objective), "forward", nan)
            out = run_step(objective, optimizer, step, weights, **kwargs)
        after[number] = bits(objective, optimizer)
        return out

    monkeypatch.setattr(stage_loop, "run_step", spoilt)
    return before, after, rows


class _Poison(torch.autograd.Function):
    """A value whose gradient is infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")


def bits(objective, optimizer):
    slots = {f"{i}.{k}": v for i, s in enumerate(optimizer.state.values()) for k, v in s.items()}
    named = dict(objective.named_parameters()) | slots
    return {name: torch.as_tensor(t).detach().clone().numpy().tobytes() for name, t in named.items()}


SHORT = ("stages.pretrain.length.steps=3", "stages.finetune.length.steps=2", "output.images_every=0")


@pytest.mark.parametrize("gradient", [False, True])
def test_a_step_that_is_not_finite_changes_no_bit_and_is_recorded(tiny, tmp_path, monkeypatch, gradient):
    before, after, rows = spoil(monkeypatch, {2, 5}, gradient=gradient)
    run = train(tiny(*SHORT, text=PLAIN), out=tmp_path / "run").run
    assert before == after and set(before) == {2, 5}
    lines = run.read_metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5], "such a step still counts"
    assert lines[1]["lr"] != lines[2]["lr"], "and so it does for the schedule"
    first, second = read_jsonl(run.anomalies)
    assert (first["step"], first["stage"], first["kind"]) == (2, "pretrain", "not-finite")
    assert second["stage"] == "finetune" and second["step"] == 5
    if gradient:
        assert first["of"] == ["grad_norm"] and math.isfinite(first["loss"])
        assert first["grad_norm"] in ("nan", "inf")
    else:
        assert first["of"] == ["loss", "grad_norm", "terms/next_token"] and first["loss"] == "nan"
        assert lines[1]["loss"] is None
    assert set(first["records"]["captions"]) == rows[2] and len(rows[2]) == 4


def test_three_in_a_row_end_the_run_with_unharmed_weights(tiny, tmp_path, monkeypatch):
    recipe = tiny("output.save_every=0", "stages.finetune.length.steps=1", text=PLAIN)
    before, *_ = spoil(monkeypatch, {3, 4, 5})
    with pytest.raises(UserError, match="train/not-finite") as error:
        train(recipe, out=tmp_path / "run")
    assert error.value.exit_code == 2 and "captions:" in error.value.problems[0].got
    run = RunFolder(tmp_path / "run")
    saved = read.newest(run).path
    assert saved is not None and read.step_of(saved) == 5
    tensors = read.load(saved).tensors
    named = {
        k.removeprefix("model."): t.numpy().tobytes() for k, t in tensors.items() if k.startswith("model.")
    }
    assert {k: before[3][k] for k in named} == named
    assert len(read_jsonl(run.anomalies)) == 3
    monkeypatch.undo()
    train(recipe, out=run.path, resume=True)
    assert len(run.read_metrics()) == 7


def test_a_first_step_that_is_not_finite_can_be_resumed_from(tiny, tmp_path, monkeypatch):
    recipe = tiny(*SHORT, text=PLAIN)
    spoil(monkeypatch, {1})
    whole = train(recipe, out=tmp_path / "whole").run
    spoil(monkeypatch, {1})
    spoilt = stage_loop.run_step

    def then_stop(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return spoilt(*args, **kwargs)

    monkeypatch.setattr(stage_loop, "run_step", then_stop)
    run = train(recipe, out=tmp_path / "run").run
    monkeypatch.undo()
    assert read.step_of(read.newest(run).path) == 1
    train(recipe, out=run.path, resume=True)
    assert [x["loss"] for x in run.read_metrics()] == [x["loss"] for x in whole.read_metrics()]
    assert run.anomalies.read_text() == whole.anomalies.read_text()


def test_anomalies_after_a_resume_read_as_if_nothing_had_happened(tiny, tmp_path, monkeypatch):
    recipe = tiny(*SHORT, "output.save_every=2", text=PLAIN)
    spoil(monkeypatch, {2, 5})
    whole = train(recipe, out=tmp_path / "whole").run
    spoil(monkeypatch, {2, 5})
    patched, calls = stage_loop.run_step, []

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return patched(*args, **kwargs)

    monkeypatch.setattr(stage_loop, "run_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    with MetricsLog(run.anomalies) as file:  # of a step that is run again
        file.write(read_jsonl(run.anomalies)[0] | {"step": 5})
    spoil(monkeypatch, {1})  # the resumed process begins at step 5
    train(recipe, out=run.path, resume=True)
    assert run.anomalies.read_text() == whole.anomalies.read_text()


def test_ten_of_a_thousand_are_too_many():
    watch = SpikeDetector()
    for n in range(SKIPPED_IN_ALL):
        assert not watch.skipped or not watch.too_many(watch.skipped[-1])
        watch.detect(50 * n + 1, report(NAN))
    assert watch.too_many(50 * (SKIPPED_IN_ALL - 1) + 1)
    assert not watch.too_many(50 * (SKIPPED_IN_ALL - 1) + 2), "only a step that was itself skipped ends a run"
    watch = SpikeDetector.of(json.loads(json.dumps(watch.state())))
    watch.detect(2000, report(NAN))
    assert not watch.too_many(2000) and watch.skipped == [2000]


def test_in_a_row_means_in_a_row():
    watch = SpikeDetector()
    for step in (1, 2, 4, 5):
        watch.detect(step, report(NAN))
        assert not watch.too_many(step)
    watch.detect(6, report(NAN))
    assert watch.too_many(6) and SKIPPED_IN_A_ROW == 3


def curve(seed, n=200):
    noise = torch.randn(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return [3 - 0.005 * i + 0.05 * x for i, x in enumerate(noise)]


@pytest.mark.parametrize("seed", range(5))
def test_a_spike_is_seen_and_noise_is_not(seed):
    watch = SpikeDetector()
    found = {
        step: seen
        for step, loss in enumerate(curve(seed), 1)
        if (seen := watch.detect(step, report(loss, loss)))
    }
    assert not found
    assert watch.detect(201, report(6.0, 1.0)) == ("spike", ["loss"])
    assert watch.detect(202, report(2.0, 9.0)) == ("spike", ["grad_norm"])
    assert not watch.skipped and len(watch.losses) == SPIKE_WINDOW


def test_the_first_steps_are_no_spikes():
    watch = SpikeDetector()
    assert watch.detect(1, report(1.0)) is None and watch.detect(2, report(100.0)) is None


def test_a_detector_restored_from_a_checkpoint_detects_the_same():
    one, two = SpikeDetector(), SpikeDetector()
    for step, loss in enumerate(curve(9), 1):
        one.detect(step, report(loss))
        two.detect(step, report(loss))
        two = SpikeDetector.of(json.loads(json.dumps(two.state())))
    assert one == two
