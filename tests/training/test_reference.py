"""Runs with a reference: where it begins, what it costs, what is kept, and what is refused."""

from __future__ import annotations

import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lmmkit import build
from lmmkit.cost_estimate import estimate
from lmmkit.errors import UserError
from lmmkit.inference.load import load
from lmmkit.plan.prepare import prepare
from lmmkit.training import stage_loop
from lmmkit.training.checkpoint import read
from lmmkit.training.distributed.process_group import ALONE
from lmmkit.training.preflight import preflight
from lmmkit.training.reference import set_reference
from lmmkit.training.run import train
from lmmkit.training.step import run_step
from tests.conftest import MODEL
from tests.support import local_ranks
from tests.training.test_run import figures

DPO = Path(__file__).resolve().parents[2] / "plugins" / "lmmkit_zoo" / "dpo.py"
WHOLE = "{vision: {}, connector: {}, text: {}}"
REDUCER = DPO.with_name("keep_tokens.py")
LOW_RANK = "{connector: {}, text: {lora: {r: 4, alpha: 8}}}"
TEXT = (
    MODEL
    + f"""
plugins:
  dpo: {{use: '{DPO}:dpo', crop: 0.3, beta: 0.5}}
stages:
  first:
    data:   {{captions: 1.0}}
    batch:  {{samples: 4}}
    length: {{steps: 2}}
    train:  {{vision: {{}}, connector: {{}}, text: {{}}}}
    optim:  {{lr: 2.0e-3}}
    losses: {{next_token: 1.0}}
  prefer:
    data:   {{questions: 1.0}}
    batch:  {{samples: 3}}
    length: {{steps: 6}}
    train:  TRAIN
    optim:  {{lr: 3.0e-3, clip: 1.0}}
    losses: {{next_token: 0.1, dpo: 1.0}}
    reference: start
output: {{save_every: 0}}
speed: {{threads: 1}}
"""
)


@pytest.fixture
def recipe_of(tiny):
    def read_with(train_section: str, *overrides: str, without: bool = False):
        text = TEXT.replace("    reference: start\n", "") if without else TEXT
        return tiny(*overrides, text=text.replace("TRAIN", train_section))

    return read_with


def run(recipe, folder: Path, **options):
    return train(recipe, out=folder, trust_files=True, **options).run


def preferred(run) -> list[float]:
    return [line["terms/dpo"] for line in run.read_metrics() if line["stage"] == "prefer"]


def assert_near(a, b, rel: float) -> None:
    for mine, theirs in zip(figures(a), figures(b), strict=True):
        for key in ("loss", "terms/dpo", "terms/next_token", "terms/dpo/margin", "grad_norm"):
            want = theirs.get(key)
            near = want if want is None else pytest.approx(want, rel=rel, abs=2e-6)
            assert mine.get(key) == near, (mine["step"], key)


def assert_starts_without_preference(run) -> None:
    """Model and reference are equal at the first step, to the bit, so a pair has ln 2: here it has three terms."""
    first = next(line for line in run.read_metrics() if line["stage"] == "prefer")
    assert first["terms/dpo/margin"] == 0 and first["terms/dpo/preferred"] == 0
    assert first["terms/dpo"] == pytest.approx(3 * math.log(2), rel=2e-7)


@pytest.fixture(scope="module", params=[WHOLE, LOW_RANK], ids=["whole", "low-rank"])
def finished(request, scenes, tmp_path_factory):
    from lmmkit.recipe import read_text

    recipe = read_text(TEXT.replace("TRAIN", request.param), name="tiny.yaml", root=scenes)
    return request.param, recipe, run(recipe, tmp_path_factory.mktemp("run") / "whole")


def test_the_first_value_is_that_of_no_preference_and_later_ones_are_lower(finished):
    assert_starts_without_preference(finished[2])
    values = preferred(finished[2])
    assert values[-1] < 0.98 * values[0]


def test_micro_batches_change_nothing(finished, recipe_of, tmp_path):
    several = run(recipe_of(finished[0], "speed.tokens=150"), tmp_path / "several")
    assert_near(several, finished[2], 2e-4)
    assert_starts_without_preference(several)


def test_a_stopped_run_goes_on_bit_for_bit(finished, tmp_path, monkeypatch):
    steps = []

    def run_step_and_signal(*args, **kwargs):
        steps.append(1)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_step(*args, **kwargs)

    monkeypatch.setattr(stage_loop, "run_step", run_step_and_signal)
    stopped = run(finished[1], tmp_path / "run")
    saved = read.newest(stopped).path
    assert saved is not None and read.step_of(saved) == 5
    names = set(read.load(saved).tensors)
    assert not [name for name in names if ".own." in f".{name}" or "reference" in name], (
        "a copy is in the checkpoint"
    )
    run(finished[1], tmp_path / "run", resume=True)
    assert figures(stopped) == figures(finished[2])
    ours, theirs = (load_file(r.model("prefer") / "model.safetensors") for r in (stopped, finished[2]))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_the_folder_of_the_start_is_the_start(finished, recipe_of, tmp_path):
    folder = finished[2].model("first")
    other = run(recipe_of(finished[0], f"stages.prefer.reference={folder}"), tmp_path / "folder")
    assert_near(other, finished[2], 1e-4)
    again = run(
        recipe_of(finished[0], f"stages.prefer.reference={finished[2].model('prefer')}"), tmp_path / "end"
    )
    assert preferred(again)[0] > preferred(finished[2])[0] + 1e-3, "the end is better than the start"


@pytest.mark.slow
@pytest.mark.parametrize("folder", [False, True])
def test_two_ranks_are_one(finished, recipe_of, tmp_path, folder):
    way = [f"stages.prefer.reference={finished[2].model('first')}"] if folder else []
    recipe = recipe_of(finished[0], *way)
    local_ranks.run(2, lambda rank: run(recipe, tmp_path / "two" / "run") and None, tmp_path / "two")
    two = type(finished[2])(tmp_path / "two" / "run")
    assert_near(two, finished[2], 2e-4)
    if not folder:  # it has the weights that one process has trained
        assert_starts_without_preference(two)


@pytest.mark.slow
def test_two_ranks_go_on_bit_for_bit(finished, recipe_of, tmp_path):
    recipe = recipe_of(finished[0], "output.save_every=5")
    for name in ("whole", "cut"):
        local_ranks.run(
            2, lambda rank, name=name: run(recipe, tmp_path / name / "run") and None, tmp_path / name
        )
        if name == "cut":
            shutil.rmtree(tmp_path / "cut" / "run" / "model" / "prefer")
            newest = sorted((tmp_path / "cut" / "run" / "checkpoints").glob("step-*"))[-1]
            shutil.rmtree(newest)
            local_ranks.run(
                2,
                lambda rank: run(recipe, tmp_path / "cut" / "run", resume=True) and None,
                tmp_path / "again",
            )
    ours, theirs = (
        load_file(tmp_path / name / "run" / "model" / "prefer" / "model.safetensors")
        for name in ("whole", "cut")
    )
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_check_counts_the_copies(finished):
    prepared = prepare(finished[1], trust_files=True)
    first, prefer = (estimate(prepared, stage, flops=1e12) for stage in ("first", "prefer"))
    objective = build.build_objective(
        prepared.recipe, prepared.instances.components, prepared.dims, torch.device("cpu")
    )
    build.set_stage(objective, prepared.plans["prefer"], prepared.recipe.stages["prefer"], seed=0)
    set_reference(prepared, "prefer", objective, ALONE, torch.device("cpu"))
    (reference,) = objective.references
    assert "reference" not in first["bytes"]
    assert prefer["bytes"]["reference"] == sum(p.nbytes for p in reference.parameters()) > 0
    assert prefer["bytes"]["all"] == sum(v for k, v in prefer["bytes"].items() if k != "all")
    names = {name.split(".")[1] for name, _ in reference.named_parameters()}
    assert names == ({"vision", "connector", "text"} if finished[0] == WHOLE else {"connector"})
    assert not {id(p) for p in reference.parameters()} & {id(p) for p in objective.parameters()}
    assert not any(p.requires_grad for p in reference.parameters())
    assert not [name for name, _ in objective.named_parameters() if ".own." in f".{name}"]


def test_the_model_of_a_run_is_measured_without_the_terms_that_compare(finished, capsys):
    model = load(finished[2].path, plugins="all", trust_files=True)
    assert [
        term.name for term in model.objective.terms
    ] == [] and "dpo is not measured" in capsys.readouterr().err
    assert not model.views.tasks and model.packer.needs == ()
    with safe_open(finished[2].model("prefer") / "model.safetensors", framework="pt") as file:
        assert all(name.startswith("lmm.") for name in list(file.keys()))


def test_validation_compares_with_the_start_too(finished, recipe_of, tmp_path):
    section = "stages.prefer.validate={every: 3, data: questions, samples: 4}"
    checked = run(recipe_of(finished[0], section), tmp_path / "run")
    found = [line["val/terms/dpo"] for line in checked.read_metrics() if "val/terms/dpo" in line]
    assert len(found) == 3 and max(found) < 2.9 * math.log(2)
    ours, theirs = (load_file(r.model("prefer") / "model.safetensors") for r in (checked, finished[2]))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours), "validation changes nothing"


def test_trained_tokens_are_copied(recipe_of):
    more = [
        "plugins.directed_token={place: before_response}", "plugins.image_order={grid: 3, permutations: 5}",
        "stages.prefer.losses.image_order=1.0",
    ]  # fmt: skip
    for train_section, parts in (
        ("{connector: {}, plugins: {}}", {"connector", "plugin_directed_token"}),
        ("{connector: {}}", {"connector"}),
    ):
        prepared = prepare(recipe_of(train_section, *more), trust_files=True)
        made = build.build_objective(
            prepared.recipe, prepared.instances.components, prepared.dims, torch.device("cpu")
        )
        build.set_stage(made, prepared.plans["prefer"], prepared.recipe.stages["prefer"], seed=0)
        set_reference(prepared, "prefer", made, ALONE, torch.device("cpu"))
        (reference,) = made.references
        assert set(build.reference_parts(prepared, "prefer")) == set(reference.own) == parts
        batch = prepared.pipeline("prefer").step(0)[0]
        with torch.no_grad():
            made.plugins["directed_token"].weight.add_(1.0)
        ctx = made(batch).ctxs["dpo"]
        moved = max(
            float((ctx[own] - ctx[ref]).detach().abs().max())
            for own, ref in zip(ctx.taps, list(ctx.taps)[1:], strict=False)
            if (own.at, own.model, ref.model) == (ref.at, "policy", "reference")
        )
        assert (moved > 1e-3) == (len(parts) == 2), "a frozen token is shared"


def test_a_reference_that_nothing_reads_changes_nothing(recipe_of):
    plans = [
        prepare(recipe_of(WHOLE, *more), trust_files=True).plans["prefer"]
        for more in ((), ("stages.prefer.losses.dpo=0", "stages.first.losses.dpo=0"))
    ]
    assert [plan.reference for plan in plans] == ["start", ""] and plans[1].needs == ()
    assert plans[0].digest != plans[1].digest


def problems_of(recipe) -> list[tuple[str, str]]:
    with pytest.raises(UserError) as error:
        preflight(recipe, trust_files=True)
    return [(p.code, p.got) for p in error.value.problems]


def test_the_folder_of_a_model_with_a_reducer_from_a_local_file(recipe_of, tmp_path):
    reduced = (f"plugins.kept={{use: '{REDUCER}:keep_tokens', count: 5}}", "model.connector.reduce=kept")
    start = run(recipe_of(WHOLE, *reduced), tmp_path / "start")
    recipe = recipe_of(WHOLE, *reduced, f"stages.prefer.reference={start.model('first')}")
    assert preferred(run(recipe, tmp_path / "folder")) == pytest.approx(preferred(start), rel=1e-5)


def test_a_folder_with_tokens_that_the_stage_does_not_have_is_refused(recipe_of, tmp_path):
    registers = DPO.with_name("registers.py")
    more = (f"plugins.spare={{use: '{registers}:registers', count: 2}}", "stages.first.tokens=[spare]")
    folder = run(recipe_of(WHOLE, *more), tmp_path / "start", stage="first").model("first")
    ((code, got),) = problems_of(recipe_of(WHOLE, f"stages.prefer.reference={folder}"))
    assert code == "plan/reference" and "learned tokens (spare), which this stage does not have" in got


def test_what_is_no_reference_is_refused(finished, recipe_of, tmp_path, scenes):
    ((code, got),) = problems_of(recipe_of(WHOLE, without=True))
    assert code == "plan/reference" and "`dpo` reads a reference" in got
    ((code, got),) = problems_of(recipe_of(WHOLE, f"stages.prefer.reference={tmp_path}"))
    assert code == "plan/reference" and "no model in" in got
    folder = shutil.copytree(finished[2].model("first"), tmp_path / "other")
    before = prepare(recipe_of(WHOLE, f"stages.prefer.reference={folder}"), trust_files=True).plans["prefer"]
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    after = prepare(recipe_of(WHOLE, f"stages.prefer.reference={folder}"), trust_files=True).plans["prefer"]
    assert before.digest != after.digest, "other weights"
    drt = [
        "plugins.directed_token={place: before_response}",
        "plugins.image_order={grid: 3, permutations: 5}",
    ]
    drt += ["stages.prefer.losses.image_order=1.0", f"stages.prefer.reference={folder}"]
    ((code, got),) = problems_of(recipe_of(WHOLE, *drt))
    assert code == "plan/reference" and "learned tokens (directed_token)" in got
    small = recipe_of(WHOLE, "model.vision.image_size=32", f"stages.prefer.reference={folder}")
    ((code, got),) = problems_of(small)
    assert code == "plan/reference" and "another size" in got


ANYRES = "{kind: anyres, grids: [[1, 2], [2, 1]]}"
NATIVE = "{kind: native, max_patches: 9}"
WIDE = "model.vision.width=30"
TIMM = "model.vision={timm: vit_tiny_patch16_224, weights: none, image_size: 24, args: {patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2%s}}"


@pytest.mark.parametrize(
    ("fit", "before", "after", "words"),
    [
        (ANYRES, [], [], "newline row"),
        (NATIVE, [TIMM % ""], [TIMM % ", dynamic_img_size: true"], "one size"),
        (NATIVE, [WIDE, "model.vision.heads=2"], [WIDE, "model.vision.heads=3"], "heads of 15 values, an odd number"),
    ],
    ids=["tiles", "native", "odd-heads"],
)  # fmt: skip
def test_a_folder_whose_model_cannot_read_images_by_their_shape_is_refused(
    recipe_of, tmp_path, fit, before, after, words
):
    folder = run(recipe_of(WHOLE, *before), tmp_path / "start", stage="first").model("first")
    changes = f"data.questions.image_fit={fit}", f"model.chat.image_fit={fit}", "plugins.dpo.crop=0.0"
    ((code, got),) = problems_of(recipe_of(WHOLE, *after, *changes, f"stages.prefer.reference={folder}"))
    assert code == "plan/reference" and words in got


@pytest.mark.parametrize(
    ("connector", "words"),
    [
        ("{kind: resampler, queries: 9}", "connector resampler, which makes other rows"),
        ("{kind: mlp2x_gelu, reduce: kept}", "connector mlp2x_gelu with `reduce: kept`"),
    ],
    ids=["resampler", "reduce"],
)
def test_a_folder_whose_connector_mixes_patches_is_refused_for_images_that_keep_their_shape(
    finished, recipe_of, tmp_path, connector, words
):
    """Its images of one size have as many rows as patches, so nothing else in it is unlike."""
    folder = shutil.copytree(finished[2].model("first"), tmp_path / "mixing")
    text = (folder / "recipe.yaml").read_text()
    plugins = f"plugins:\n  kept: {{use: '{REDUCER}:keep_tokens', count: 9}}\n"
    changed = text.replace("{kind: mlp2x_gelu}", connector).replace("plugins:\n", plugins)
    assert connector in changed and plugins in changed
    (folder / "recipe.yaml").write_text(changed)
    native = f"data.questions.image_fit={NATIVE}", f"model.chat.image_fit={NATIVE}", "plugins.dpo.crop=0.0"
    ((code, got),) = problems_of(recipe_of(WHOLE, *native, f"stages.prefer.reference={folder}"))
    assert code == "plan/reference" and f"{words}, for images that keep" in got
