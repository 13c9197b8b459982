"""What a term is given of the step, and the weights that are logged: functions of the number of the step."""

from __future__ import annotations

import os
import signal

import pytest

from lmmkit.runs.run_folder import RunFolder
from lmmkit.training import stage_loop
from lmmkit.training.run import train
from lmmkit.training.step import run_step
from tests.conftest import PLAIN

CLOCK = '''
from dataclasses import dataclass
import torch
from lmmkit.api import HiddenMean, Loss, Metric, Select, hookimpl

@dataclass(frozen=True, kw_only=True)
class Clock(Loss):
    """Pulls mean states to noise, and reports what it is given."""
    needs = (HiddenMean(Select(kind="image"), layer=1),)
    def value(self, ctx):
        x = ctx[self.needs[0]]
        return (x - torch.randn(x.shape, generator=ctx.rng)).square().mean(-1).sum() * (1 + ctx.progress)
    def metrics(self, ctx):
        n = len(ctx[self.needs[0]])
        facts = {"step": ctx.step, "progress": ctx.progress, "width": ctx.dims.width, "draw": torch.rand(1, generator=ctx.rng)}
        return {name: Metric(n * torch.as_tensor(float(x)), 0.0) for name, x in facts.items()}

@hookimpl
def lmmkit_components():
    return {"clock": Clock}
'''


@pytest.fixture
def recipe(tiny, tmp_path):
    (tmp_path / "clock.py").write_text(CLOCK)
    text = PLAIN.replace("stages:", f"plugins:\n  clock: {{use: {tmp_path / 'clock.py'}}}\nstages:", 1)
    text = text.replace("{next_token: 1.0}", "{next_token: 1.0, clock: {from: 0.0, to: 0.3, over: 0.5}}")
    check = "stages.finetune.validate={every: 3, data: heldout, samples: 6}"
    return tiny("stages.pretrain.length.steps=2", "stages.finetune.length.steps=6", check, text=text)


def lines(run: RunFolder) -> list[dict]:
    """Returns the metrics without those that depend on the clock."""
    clock = ("seconds", "tokens_per_second", "val/seconds")
    return [{k: v for k, v in line.items() if k not in clock} for line in run.read_metrics()]


def test_terms_are_given_the_step_and_its_weights_are_logged_also_after_a_resume(
    recipe, tmp_path, monkeypatch
):
    whole = lines(train(recipe, out=tmp_path / "whole", trust_files=True).run)
    steps = [line for line in whole if "loss" in line]
    done = [(line["stage"], line["terms/clock/step"], line["terms/clock/progress"]) for line in steps]
    want = [("pretrain", n, n / 2) for n in range(2)] + [("finetune", n, n / 6) for n in range(6)]
    assert [(stage, n) for stage, n, _ in done] == [(stage, n) for stage, n, _ in want]
    assert [p for *_, p in done] == pytest.approx([p for *_, p in want])
    ramp = [0.0, 0.3, 0.0, 0.1, 0.2, 0.3, 0.3, 0.3]
    assert [line["weights/clock"] for line in steps] == pytest.approx(ramp)
    assert {line["weights/next_token"] for line in steps} == {1.0}
    assert {line["terms/clock/width"] for line in steps} == {recipe.model.text.width}
    assert len({line["terms/clock/draw"] for line in steps}) == 8, "each step draws other numbers"
    for line in steps:
        loss = line["terms/next_token"] + line["weights/clock"] * line["terms/clock"]
        assert line["loss"] == pytest.approx(loss, rel=1e-5)
    first, *_, last = (line for line in whole if "loss" not in line)
    for line in (first, last):
        assert (line["val/terms/clock/step"], line["val/terms/clock/progress"]) == (0, 1)
    assert first["val/terms/clock/draw"] == last["val/terms/clock/draw"], "validations can be compared"

    count = []

    def stops(*args, **kwargs):
        count.append(1)
        if len(count) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_step(*args, **kwargs)

    monkeypatch.setattr(stage_loop, "run_step", stops)
    assert train(recipe, out=tmp_path / "part", trust_files=True).signal == signal.SIGTERM
    monkeypatch.undo()
    assert lines(train(recipe, out=tmp_path / "part", trust_files=True, resume=True).run) == whole
