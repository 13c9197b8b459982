"""Deterministic mode: the same bits as without on a CPU, and a kernel that cannot is named."""

from __future__ import annotations

import pytest
import torch

from lmmkit.errors import MachineError
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training import stage_loop
from lmmkit.training.run import train

SHORT = ("stages.pretrain.length.steps=2", "stages.finetune.length.steps=2", "output.images_every=0")


def test_a_cpu_run_has_the_same_bits_with_it_and_without(tiny, tmp_path):
    losses = []
    for asked in ("true", "false"):
        run = train(tiny(*SHORT, f"speed.deterministic={asked}"), out=tmp_path / asked).run
        assert not torch.are_deterministic_algorithms_enabled()
        losses.append([line["loss"] for line in run.read_metrics()])
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_kernel_that_is_not_is_named(tiny, tmp_path, monkeypatch):
    run_step = stage_loop.run_step

    def disordered(*args, **kwargs):
        report = run_step(*args, **kwargs)
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
        return report

    monkeypatch.setattr(stage_loop, "run_step", disordered)
    train(tiny(*SHORT), out=tmp_path / "free")
    with pytest.raises(
        MachineError,
        match=r"step 1, stage pretrain: got put_.*speed\.deterministic.*\[train/not-deterministic\]",
    ):
        train(tiny(*SHORT, "speed.deterministic=true"), out=tmp_path / "run")
    assert not RunFolder(tmp_path / "run").read_metrics()


def test_what_the_caller_has_set_stays(tiny, tmp_path):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for asked in ("false", "true"):
            train(tiny(*SHORT, f"speed.deterministic={asked}"), out=tmp_path / asked)
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
