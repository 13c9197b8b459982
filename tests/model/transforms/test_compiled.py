"""Layers compiled around their attention: the same figures, no break, one graph for any length."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from lmmkit import build
from lmmkit.api.batch import Patches
from lmmkit.errors import MachineError
from lmmkit.model.cpu_ops import FEW
from lmmkit.model.transforms import compiled, lora
from lmmkit.recipe import Speed
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.run import train
from tests.model.test_vision import SIGLIP, vit
from tests.model.test_vision_packed import drawn
from tests.support import local_ranks, paper_objective
from tests.support.plain_twins import off, show

SAMPLES = (*paper_objective.CAPTIONS, *paper_objective.CHATS)


@pytest.fixture
def graphs(monkeypatch):
    """Lists every graph made, by the tracing that `inductor` gets its graphs from; a break is an error."""
    made: list[torch.fx.GraphModule] = []

    def keep(graph, example):
        made.append(graph)
        return graph

    monkeypatch.setattr(compiled, "BACKEND", keep)
    torch._dynamo.utils.counters.clear()
    yield made
    assert not torch._dynamo.utils.counters["graph_break"]
    torch.compiler.reset()


def figures(made, batches, speed: Speed):
    made.train()
    build.set_layers(made, speed)
    sums, gradients = paper_objective.learned(made, batches)
    return {**sums, **{name: g.clone() for name, g in gradients.items() if g is not None}}


def assert_same(got, want, limit: float) -> None:
    assert set(got) == set(want) and len(want) > 20
    worst = max(off(got[name], want[name]) for name in want)
    show("off_compiled", worst)
    assert worst < limit


@pytest.mark.parametrize("recomputed", ["none", "all"])
def test_one_graph_a_half_serves_layers_and_lengths(graphs, recomputed):
    made = paper_objective.objective()
    batches = [paper_objective.packed(samples)[0] for samples in (SAMPLES, SAMPLES[2:], SAMPLES[:3])]
    assert len({len(batch) for batch in batches}) == 3
    want = figures(made, batches, Speed(recompute=recomputed))
    got = figures(made, batches, Speed(recompute=recomputed, compile=True))
    assert_same(got, want, 1e-10)
    assert len(graphs) <= 8, "the halves of decoder and encoder, with and without a gradient of their input"
    assert_same(figures(made, batches, Speed(recompute=recomputed)), want, 1e-12)  # and back


def seen_and_learned(encoder, images: Patches) -> dict[str, torch.Tensor]:
    """Returns the tokens of packed images, and the gradients of all parameters."""
    seen_RD = encoder.packed(images)
    names, parameters = zip(*encoder.named_parameters(), strict=True)
    found = torch.autograd.grad(seen_RD.tanh().square().sum(), parameters)
    return {"seen": seen_RD.detach(), **dict(zip(names, found, strict=True))}


def test_one_graph_a_half_serves_images_of_any_size_and_number(graphs):
    """Takes more unlike batches than dynamo keeps graphs, with images of one size and without a gradient between."""
    limit = torch._dynamo.config.recompile_limit
    grids = [[(1 + n % 5, 2 + i) for i in range(1 + n % 4)] for n in range(2, limit + 3)]
    totals = {sum(lines * columns for lines, columns in each) for each in grids}
    assert len(totals) > limit and min(totals) <= FEW < max(totals)
    shape = replace(SIGLIP, depth=3)
    encoder, square = vit(shape), torch.stack(drawn([(5, 5)] * 3, shape.patch))
    batches = [Patches.of(drawn(each, shape.patch), shape.patch) for each in grids]
    want, dense = [seen_and_learned(encoder, each) for each in batches], encoder(square).detach()
    compiled.set_compiled(encoder.blocks, True)
    for images, plain in zip(batches, want, strict=True):
        assert_same(seen_and_learned(encoder, images), plain, 2e-6)
        assert len(graphs) == 2, "the halves"
    assert off(encoder(square), dense) < 2e-6
    with torch.no_grad():
        for images, plain in zip(batches, want, strict=True):
            if len(plain["seen"]) > FEW:
                assert off(encoder.packed(images), plain["seen"]) < 2e-6
    assert len(graphs) == 2 * 3, "packed, of one size, packed without a gradient"
    # the kinds are packed, several and one of one size, each with and without a gradient, and few without a gradient
    assert limit >= 7, "dynamo keeps so many of each half, and then compiles no more"


def test_low_rank_updates_are_part_of_the_graph(graphs):
    made = paper_objective.objective()
    made.requires_grad_(False)
    options = {"r": 2, "alpha": 4.0, "dropout": 0.0, "targets": lora.TARGETS, "seed": 0}
    for i, p in enumerate(lora.attach(made.lmm.decoder, **options)):
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).double() * 0.3
    batch, _ = paper_objective.packed(SAMPLES)
    want = figures(made, [batch], Speed())
    assert_same(figures(made, [batch], Speed(compile=True)), want, 1e-10)
    assert graphs


@pytest.mark.slow
def test_a_run_of_the_paper_says_what_it_says_uncompiled(graphs, tiny, tmp_path):
    runs = [
        train(tiny(f"speed.compile={asked}"), out=tmp_path / asked).run.read_metrics()
        for asked in ("true", "false")
    ]
    assert graphs and len(runs[0]) == 12
    for a, b in zip(*runs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["step"] == b["step"]


def test_a_machine_that_cannot_compile_is_reported(monkeypatch, tiny, tmp_path):
    def broken(graph, example):
        raise RuntimeError("no compiler here\nand a page of advice")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    with pytest.raises(MachineError, match=r"speed.compile[^\n]*: got `true`.*no compiler here"):
        train(tiny("speed.compile=true"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    torch.compiler.reset()


@pytest.mark.slow
def test_inductor_says_the_same(monkeypatch):
    torch.compiler.reset()
    made = paper_objective.objective(dtype=torch.float32)
    batches = [paper_objective.packed(samples)[0] for samples in (SAMPLES, SAMPLES[2:])]
    want = figures(made, batches, Speed())
    assert_same(figures(made, batches, Speed(compile=True)), want, 1e-5)


@pytest.mark.slow
def test_without_a_compiler_the_reason_is_given(tmp_path):
    code = "import torch; from lmmkit.model.transforms.compiled import why_not; print(why_not(torch.device('cpu')))"
    env = os.environ | {"CXX": "/no/such/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert result.stdout.strip() and len(result.stdout.strip().splitlines()) == 1


@pytest.mark.slow
def test_two_ranks_compiled_say_what_one_process_says(graphs, tiny, tmp_path):
    short = [f"stages.{stage}.length.steps=2" for stage in ("pretrain", "finetune")]
    recipes = [tiny(f"speed.compile={asked}", *short) for asked in ("true", "false")]

    def body(rank):
        train(recipes[0], out=tmp_path / "two")
        assert graphs

    local_ranks.run(2, body, tmp_path)
    one = train(recipes[1], out=tmp_path / "one").run.read_metrics()
    for a, b in zip(RunFolder(tmp_path / "two").read_metrics(), one, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
