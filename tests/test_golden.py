"""Losses that must not move: a refactor keeps them bit for bit, a numeric change explains itself.

`LMMKIT_WRITE_GOLDEN=1 pytest tests/test_golden.py` writes the files anew; a commit that does so
says why. Bits where torch and the CPU are those of the file, 1e-5 elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lmmkit.training.run import train
from tests.conftest import DIRECT, PLAIN

GOLDEN = Path(__file__).parent / "golden"
LONG = ("stages.pretrain.length.steps=10", "stages.finetune.length.steps=10")


def kind() -> str:
    """What the bits depend on."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return f"torch {torch.__version__.split('+')[0]}  cpu {torch.backends.cpu.get_cpu_capability()} {names[0] if names else 'unknown'}"


@pytest.mark.parametrize(("name", "text"), [("direct", DIRECT), ("plain", PLAIN)])
def test_losses_stand(tiny, tmp_path, name, text):
    lines = train(tiny(*LONG, text=text), out=tmp_path / "run").run.read_metrics()
    losses = [line["loss"] for line in lines]
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("LMMKIT_WRITE_GOLDEN"):
        file.write_text("\n".join([f"# {kind()}", *(loss.hex() for loss in losses)]) + "\n")
    header, *stored = file.read_text().splitlines()
    golden = [float.fromhex(value) for value in stored]
    if header == f"# {kind()}":
        assert [loss.hex() for loss in losses] == stored
    assert losses == pytest.approx(golden, rel=1e-5)
