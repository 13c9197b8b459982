"""The kinds of optimizer; 8-bit AdamW by bitsandbytes: the size of its moments, its losses, resume, and its absence."""

from __future__ import annotations

import shutil
import sys
from typing import get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file

from lmmkit.errors import MachineError
from lmmkit.optimizers import OPTIMIZERS, state_bytes
from lmmkit.recipe import Optim, read_text
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import read, state_dict
from lmmkit.training.run import train
from tests.conftest import DIRECT, PLAIN
from tests.test_cli import run as command
from tests.training.test_run import figures

WIDE = ("model.text={width: 64, depth: 2, heads: 2, mlp: 160, context: 256}",)  # linears of 8-bit size
BOTH = [f"stages.{stage}.optim.kind=adamw8bit" for stage in ("pretrain", "finetune")]


def test_a_recipe_can_name_each_kind_and_no_other():
    assert set(get_args(get_type_hints(Optim)["kind"])) == set(OPTIMIZERS)


def test_each_kind_is_built_with_the_recipe_s_betas_and_eps():
    for kind, spec in OPTIMIZERS.items():
        optim = Optim(kind=kind, lr=1.0, betas=(0.8, 0.9), eps=1e-5)
        groups = [{"params": [torch.nn.Parameter(torch.zeros(3))], "lr": 0.5, "weight_decay": 0.1}]
        (group,) = spec.build(groups, optim).param_groups
        assert (tuple(group["betas"]), group["eps"]) == ((0.8, 0.9), 1e-5), kind
        assert (group["lr"], group["weight_decay"]) == (0.5, 0.1), kind


def test_moments_in_eight_bits_have_a_scale_for_each_block():
    assert state_bytes("adamw", (4095, 4096, 5000)) == 8 * (4095 + 4096 + 5000)
    assert state_bytes("adamw8bit", (4095, 4096, 5000)) == 8 * 4095 + 2 * (4096 + 4 * 16) + 2 * (
        5000 + 4 * 20
    )
    with pytest.raises(KeyError):
        state_bytes("lion", (1,))


@pytest.fixture(scope="module")
def finished(scenes, tmp_path_factory):
    recipe = read_text(DIRECT, name="tiny.yaml", overrides=[*WIDE, *BOTH], root=scenes)
    return recipe, train(recipe, out=tmp_path_factory.mktemp("8bit") / "run").run


def held(folder) -> dict[str, torch.Tensor]:
    return {k: t for shard in folder.glob("shard-*.safetensors") for k, t in load_file(shard).items()}


def test_moments_of_matrices_take_one_byte_each(finished):
    slots = held(read.newest(finished[1]).path)
    sizes: dict[str, int] = {}
    for name, tensor in slots.items():
        if name.startswith("optim.") and ".step" not in name:
            parameter = name.removeprefix("optim.").rpartition(".")[0]
            sizes[parameter] = sizes.get(parameter, 0) + tensor.nbytes
    matrices = 0
    for parameter, size in sizes.items():
        count = slots[f"model.{parameter}"].numel()
        if count < 4096:  # as the library keeps small ones
            assert size == 8 * count
        else:
            blocks = -(-count // 256)
            assert size == 2 * count + 8 * blocks
            matrices += count
    assert matrices > 100_000


def test_losses_stay_near_those_of_adamw(tiny, tmp_path):
    long = [*WIDE, "stages.pretrain.length.steps=40", "stages.finetune.length.steps=1"]
    plain, lean = (
        [
            line["loss"]
            for line in train(
                tiny(*long, *kind, text=PLAIN), out=tmp_path / str(len(kind))
            ).run.read_metrics()
        ]
        for kind in ([], BOTH)
    )
    assert plain[39] < 0.8 * plain[0], "long enough for a difference to show"
    assert lean == pytest.approx(plain, rel=0.02) and lean != plain


def test_a_run_with_eight_bits_resumes_bit_for_bit(finished, tmp_path):
    recipe, whole = finished
    shutil.copytree(whole.path, tmp_path / "part")
    part = RunFolder(tmp_path / "part")
    shutil.rmtree(part.model("finetune"))
    shutil.rmtree(sorted((part.path / "checkpoints").iterdir())[-1])  # on from inside the second stage
    train(recipe, out=part.path, resume=True)
    assert figures(part) == figures(whole)
    ours, theirs = held(read.newest(part).path), held(read.newest(whole).path)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    steps = {int(t) for name, t in ours.items() if name.endswith(".step")}
    assert steps == {6}, "counted by the library itself, and brought back"


def test_restoring_moves_no_parameter(tmp_path):
    net = torch.nn.Linear(64, 128)
    groups = [{"params": list(net.parameters()), "lr": 1.0, "weight_decay": 0.5}]
    optimizer = OPTIMIZERS["adamw8bit"].build(groups, Optim(kind="adamw8bit", lr=1.0))
    before = net.weight.detach().clone()
    state_dict._allocate(optimizer)
    assert torch.equal(net.weight, before) and optimizer.state[net.weight]["state1"].dtype == torch.uint8


def test_an_absent_library_is_refused_before_anything_costs_time(tiny, tmp_path, scenes, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    with pytest.raises(MachineError, match="optim/not-installed") as error:
        train(tiny(*BOTH), out=tmp_path / "run")
    assert [p.where for p in error.value.problems] == [f"--set {each}" for each in BOTH]
    assert 'pip install "lmmkit[lean]"' in error.value.problems[0].hint
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine.yaml").write_text(PLAIN)
    text = command("check", tmp_path / "mine.yaml", "--root", scenes, "--set", BOTH[0], code=3)
    assert "optim/not-installed" in text
    assert train(tiny(text=PLAIN.replace("steps: 6", "steps: 1")), out=tmp_path / "plain").signal is None
