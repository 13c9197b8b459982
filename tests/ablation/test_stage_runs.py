"""The keys of stages, what they share, and that a shared stage gives the bits of a whole run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from safetensors.torch import load_file

from lmmkit.ablation.arms import Arm
from lmmkit.ablation.planned_runs import unique_stages
from lmmkit.ablation.stage_runs import APART, ArmOnData, _hash, grid_runs
from lmmkit.ablation.store import Store
from lmmkit.recipe import read_text
from lmmkit.training.run import train
from lmmkit.weights.model_folder import WEIGHTS
from tests.conftest import DIRECT, PLAIN

STEPS = {"pretrain": 3, "finetune": 3}
SHORT = [f"stages.{stage}.length.steps=3" for stage in STEPS]
# a task of the second stage alone, on the plain recipe
LATE = [
    "plugins={guided_loss: {}, directed_token: {}, image_order: {grid: 3, permutations: 5}}",
    "stages.finetune.losses={next_token: 1.0, image_order: 1.0}", "stages.pretrain.losses.guided_loss=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def opened(scenes):
    found = {}

    def make(*overrides, text=PLAIN, name="arm"):
        key = (text, overrides)
        if key not in found:
            found[key] = ArmOnData(Arm(name, "", read_text(text, overrides=[*SHORT, *overrides])), scenes)
        return found[key]

    return make


def keys(arm, seed=1, steps=STEPS, **more):
    return [stage.key for stage in arm.stage_runs(seed, steps, **more)]


def test_a_key_depends_on_all_that_decides_the_result_and_on_nothing_else(opened):
    plain = keys(opened())
    same = (
        "output.save_every=1",
        "evaluate.tasks.answers.max_new_tokens=2",
        "stages.finetune.losses={next_token: 1.0}",
    )
    for change in same:
        assert keys(opened(change)) == plain, change
    second = ("stages.finetune.optim.lr=1.0e-3", "stages.finetune.batch.samples=3", LATE)
    for change in second:
        changes = [change] if isinstance(change, str) else change
        first, last = keys(opened(*changes))
        assert first == plain[0] and last != plain[1], change
    for change in (
        "model.text.mlp=64",
        "stages.pretrain.optim.lr=1.0e-3",
        "numerics.frozen=bfloat16",
        "speed.tokens=99",
    ):
        first, last = keys(opened(change))
        assert first != plain[0] and last != plain[1], change
    assert not set(keys(opened(), seed=2)) & set(plain)
    assert keys(opened(), steps={**STEPS, "finetune": 4})[0] == plain[0]


def test_a_setting_that_is_not_given_changes_no_key():
    section = {"kind": "mlp2x_gelu", "grids": [[1, 2]]}
    assert _hash([section, {}]) == _hash([{**section, "of_a_later_lmmkit": None}, {"also": None}])
    assert _hash(section) != _hash({**section, "of_a_later_lmmkit": 0})


def test_a_plugin_that_no_stage_uses_changes_nothing(opened):
    unused = opened("plugins={guided_loss: {}}", "stages.finetune.losses.guided_loss=0")
    assert keys(unused) == keys(opened())
    assert not unused.stage_runs(1, STEPS)[-1].recipe.plugins


def test_other_data_and_another_tokenizer_give_other_keys(opened, scenes, tmp_path):
    import shutil

    copy = tmp_path / "scenes"
    shutil.copytree(scenes, copy)
    arm = opened()
    assert keys(ArmOnData(arm.arm, copy)) == keys(arm), "the path has no effect"
    text = (copy / "finetune.json").read_text()
    (copy / "finetune.json").write_text(text + "\n")
    first, last = keys(ArmOnData(arm.arm, copy))
    assert first == keys(arm)[0] and last != keys(arm)[1], "the first stage does not read it"
    heldout = copy / "heldout.json"
    heldout.write_text(heldout.read_text() + "\n")
    assert ArmOnData(arm.arm, copy).questions() != arm.questions()


def test_branches_share_the_stages_before_and_have_other_seeds_after(opened):
    runs = grid_runs([opened()], [1, 2], equal="steps", steps={"arm": STEPS}, branches=3, after="pretrain")
    assert len(runs) == 6 and len(unique_stages(runs)) == 2 + 6
    assert [run.last.recipe.seed for run in runs[:3]] == [1, 1 + APART, 1 + 2 * APART]
    assert runs[0].key == keys(opened())[1], "the first branch is the run without branches"


def trained(store, run):
    """Trains the stages of a run one by one, as the commands of a grid do."""
    for stage in run.stages:
        recipe = read_text(store.write_recipe(stage).read_text(), root=stage.recipe.root)
        train(recipe, out=store.run(stage.key).path, stage=stage.stage)
    return [load_file(store.model(stage) / WEIGHTS) for stage in run.stages]


@pytest.mark.parametrize("case", ["direct", "late"])
def test_stages_that_are_trained_apart_give_the_bits_of_one_run(opened, scenes, tmp_path, case):
    text, changes = (DIRECT, []) if case == "direct" else (PLAIN, LATE)
    arm = opened(*changes, text=text)
    recipe = replace(read_text(text, overrides=[*SHORT, *changes], root=scenes), seed=4)
    whole = train(recipe, out=tmp_path / "whole").run
    (run,) = grid_runs([arm], [4], equal="steps", steps={"arm": STEPS})
    apart = trained(Store(tmp_path / "store"), run)
    for stage, tensors in zip(recipe.stages, apart, strict=True):
        expected = load_file(whole.model(stage) / WEIGHTS)
        assert tensors and set(tensors) <= set(expected), stage
        assert all(tensor.equal(expected[name]) for name, tensor in tensors.items()), stage
        lacking = set(expected) - set(tensors)
        assert all(name.startswith("plugins.") for name in lacking) and (not lacking or stage == "pretrain")


def test_a_stage_names_only_the_teachers_that_it_reads(scenes, tmp_path):
    """`lmmkit train` refuses a teacher that no plugin of the recipe reads."""
    from tests.training import test_reference_teachers as teachers

    folder = tmp_path / "teacher"
    teachers.encoder(folder, image_size=60)
    (tmp_path / "follow.py").write_text(teachers.PLUGIN)
    changes = [
        f"plugins={{follow: {{use: {tmp_path / 'follow.py'}, teacher: dino}}}}",
        f"teachers={{dino: {{from: {folder}, feature_layer: -1}}}}", "stages.finetune.losses={next_token: 1.0, follow: 1.0}",
    ]  # fmt: skip
    recipe = read_text(PLAIN, overrides=[*SHORT, *changes])
    first, last = ArmOnData(Arm("arm", "", recipe), scenes, trust_files=True).stage_runs(1, STEPS)
    assert not first.recipe.teachers and not first.recipe.plugins
    assert list(last.recipe.teachers) == ["dino"]
