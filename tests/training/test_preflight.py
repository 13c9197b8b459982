"""The checks before a run: `check` and `train` run the same ones, and report all problems at once."""

from __future__ import annotations

import sys

import pytest
import torch

from lmmkit import build
from lmmkit.attention.interface import Heads
from lmmkit.attention.sdpa import Sdpa
from lmmkit.attention.trial import Conditions
from lmmkit.errors import MachineError, UserError
from lmmkit.training.distributed.process_group import Ranks
from lmmkit.training.preflight import preflight
from lmmkit.training.run import train
from tests.conftest import DIRECT
from tests.test_cli import run as command

TYPO = "evaluate.tasks.answers={kind: questons, data: heldout}"
BEST = "stages.finetune.validate={every: 2, data: heldout, best: text_order}"


def codes(error) -> set[str]:
    return {problem.code for problem in error.value.problems}


def test_a_typo_in_a_task_is_reported_before_training(tiny, tmp_path):
    with pytest.raises(UserError) as error:
        train(tiny(TYPO), out=tmp_path / "run")
    (problem,) = error.value.problems
    assert problem.code == "evaluate/unknown-kind" and "questions" in problem.hint
    assert not (tmp_path / "run").exists()


def test_check_reports_what_train_reports(tiny, tmp_path, scenes):
    (tmp_path / "mine.yaml").write_text(DIRECT)
    text = command("check", tmp_path / "mine.yaml", "--root", scenes, "--set", TYPO, "--set", BEST, code=2)
    with pytest.raises(UserError) as error:
        train(tiny(TYPO, BEST), out=tmp_path / "run")
    assert codes(error) == {"evaluate/unknown-kind", "validate/best"}
    assert all(code in text for code in codes(error))


def test_independent_problems_are_reported_together(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    recipe = tiny(
        TYPO, BEST, "stages.pretrain.optim.kind=adamw8bit",
        "stages.pretrain.batch={samples: 500, tail: drop}", "stages.pretrain.length={epochs: 1}",
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        preflight(recipe, ranks=Ranks(world=2, rank=0))
    expected = {
        "evaluate/unknown-kind",
        "validate/best",
        "optim/not-installed",
        "parallel/optimizer",
        "data/no-step",
    }
    assert codes(error) == expected and len(error.value.problems) == len(expected)


def test_a_check_waits_until_those_that_it_needs_pass(tiny):
    with pytest.raises(UserError) as error:
        preflight(tiny(BEST, "plugins.image_order={gird: 3}"))
    assert "validate/best" not in codes(error) and "plugin/unknown-key" in codes(error)


def test_problems_of_the_machine_alone_are_a_machine_error(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    with pytest.raises(MachineError) as error:
        preflight(tiny("stages.pretrain.optim.kind=adamw8bit", "stages.finetune.optim.kind=adamw8bit"))
    assert codes(error) == {"optim/not-installed"} and len(error.value.problems) == 2


def test_attention_is_tried_with_the_heads_and_kernels_of_the_recipe(tiny, monkeypatch):
    tried = []

    def noted(name, at):
        tried.append(at)
        return Sdpa()

    monkeypatch.setattr("lmmkit.build.device.choose", noted)
    recipe = tiny("speed.deterministic=true", "model.text.kv_heads=1", "numerics.compute=bfloat16")
    preflight(recipe)
    text, vision = recipe.model.text, recipe.model.vision
    encoder = Heads(vision.heads, vision.heads, vision.width // vision.heads)
    want = Conditions(build.device_here(), torch.float32, Heads(text.heads, 1, text.head_size), encoder, True)
    assert set(tried) == {want._replace(dtype=build.compute_dtype(recipe, want.device))}
    assert build.conditions(recipe, torch.device("cuda")).dtype == torch.bfloat16
    assert not want.packed_images
    for key in ("data.questions", "model.chat"):
        native = tiny(f"{key}.image_fit={{kind: native, max_patches: 9, multiple: 3}}")
        assert build.conditions(native, want.device).packed_images


def test_a_kernel_that_cannot_run_is_reported_together_with_the_rest_and_once(tiny):
    with pytest.raises(UserError) as error:
        preflight(tiny("speed.attention=flash", "plugins.image_order={gird: 3}"))
    assert {"model/attention-backend", "plugin/unknown-key"} <= codes(error)
    with pytest.raises(MachineError, match="flash: no kernels for cpu") as error:
        preflight(tiny("speed.attention=flash"))
    assert len(error.value.problems) == 1


def test_a_sound_recipe_is_prepared_with_the_sources_that_are_asked_for(tiny):
    recipe = tiny()
    prepared, device = preflight(recipe)
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert set(prepared.sources) == {"captions", "questions"}
    assert set(preflight(recipe, data=recipe.data)[0].sources) == set(recipe.data)


def test_a_machine_without_a_compiler_is_reported(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("lmmkit.build.device.why_not", lambda device: "no C++ compiler")
    with pytest.raises(MachineError, match=r"no C\+\+ compiler.*model/compile"):
        train(tiny("speed.compile=true"), out=tmp_path / "run")
