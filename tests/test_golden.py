"""Losses that must not move: a refactor keeps them bit for bit, a numeric change explains itself.

One file for each CPU capability. `LMMKIT_WRITE_GOLDEN=1 pytest tests/test_golden.py` rewrites the one of this
machine; a commit that does so says why. The losses are compared bit for bit where a file of this torch and
this CPU is stored, and always with all stored files to 1e-5 relative. Nothing is skipped: where Pillow or
sentencepiece draw other scenes, the test fails and says so.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

from lmmkit.training.run import train
from tests.conftest import DIRECT, PLAIN

GOLDEN = Path(__file__).parent / "golden"
LONG = ("stages.pretrain.length.steps=10", "stages.finetune.length.steps=10")


def kind() -> str:
    """Describes what the bits depend on."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return f"torch {torch.__version__.split('+')[0]}  cpu {torch.backends.cpu.get_cpu_capability()} {names[0] if names else 'unknown'}"


def data_mark(scenes: Path) -> str:
    """Returns a mark of what the losses are from: the bytes of tokenizer, records and images."""
    digest = hashlib.sha256()
    for path in sorted(p for p in scenes.rglob("*") if p.suffix in (".json", ".model", ".jpg", ".png")):
        digest.update(path.read_bytes())
    return f"data {digest.hexdigest()[:12]}"


@pytest.mark.parametrize(("name", "text"), [("direct", DIRECT), ("plain", PLAIN)])
def test_losses_stand(tiny, scenes, tmp_path, name, text):
    lines = train(tiny(*LONG, text=text), out=tmp_path / "run").run.read_metrics()
    losses = [line["loss"] for line in lines]
    own = GOLDEN / f"{name}-{torch.backends.cpu.get_cpu_capability().lower()}.txt"
    if os.environ.get("LMMKIT_WRITE_GOLDEN"):
        marks = [f"# {kind()}", f"# {data_mark(scenes)}"]
        own.write_text("\n".join([*marks, *(loss.hex() for loss in losses)]) + "\n")
    files = sorted(GOLDEN.glob(f"{name}-*.txt"))
    assert files
    for file in files:
        header, data, *stored = file.read_text().splitlines()
        assert data == f"# {data_mark(scenes)}", "the scenes changed: rewrite the golden losses if on purpose"
        assert losses == pytest.approx([float.fromhex(value) for value in stored], rel=1e-5)
        if header == f"# {kind()}":
            assert [loss.hex() for loss in losses] == stored
