"""The arms of a grid, and variants that change nothing, are equal, or have no such figure."""

from __future__ import annotations

import pytest

from lmmkit.ablation.arms import has_figure, read_arms
from lmmkit.ablation.grid import read_grid
from lmmkit.errors import UserError
from lmmkit.recipe import read_text
from tests.conftest import DIRECT
from tests.support.grids import write_grid

HEAD = """
base: plain.yaml
root: ROOT
seeds: [1, 2]
measures: {right: answers/accuracy, order: terms/image_order/accuracy}
set: {stages.pretrain.length.steps: 4}
variants:
  direct: {recipe: direct.yaml}
"""


def read(tmp_path, text):
    return read_arms(read_grid(write_grid(tmp_path, tmp_path, HEAD + text)))


def refused(tmp_path, text):
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    return [(problem.code, problem.where.split(":", 1)[1]) for problem in error.value.problems]


def test_each_combination_of_a_product_is_an_arm(tmp_path):
    arms = read(
        tmp_path,
        "  w: {product: {stages.finetune.optim.lr: [1.0e-4, 1.0e-3], stages.finetune.batch.samples: [2, 3]}}\n",
    )
    assert [arm.name for arm in arms] == [
        "base",
        "direct",
        "w/0.0001/2",
        "w/0.0001/3",
        "w/0.001/2",
        "w/0.001/3",
    ]
    assert [arm.recipe.stages["pretrain"].length.steps for arm in arms] == [4] * 6, "`set` is for all"
    assert arms[3].recipe.stages["finetune"].optim.lr == 1e-4
    assert arms[3].recipe.stages["finetune"].batch.samples == 3
    assert list(arms[1].recipe.plugins) and not arms[0].recipe.plugins


def test_variants_that_change_nothing_or_are_equal_are_refused_with_their_lines(tmp_path):
    text = (
        "  empty: {}\n"
        "  seed: {set: {seed: 99}}\n"
        "  asked: {set: {evaluate.tasks.answers.max_new_tokens: 3, output.save_every: 2}}\n"
        "  again: {recipe: direct.yaml}\n"
        "  same: {product: {stages.pretrain.length.steps: [4, 5]}}\n"
    )
    assert refused(tmp_path, text) == [
        ("ablation/set-seed", "10:16 variants.seed.set.seed"), ("ablation/changes-nothing", "9:3 variants.empty"), ("ablation/changes-nothing", "10:3 variants.seed"),
        ("ablation/changes-nothing", "11:3 variants.asked"), ("ablation/equal-variants", "12:3 variants.again"),
        ("ablation/changes-nothing", "13:3 variants.same"),
    ]  # fmt: skip


def test_problems_of_changes_are_at_their_lines_of_the_grid_and_all_at_once(tmp_path):
    text = "  a: {set: {stages.finetune.optim.lrr: 1}}\n  b: {set: {stages.fine.optim.lr: 1, seed: x}}\n  c: {}\n"
    found = refused(tmp_path, text)
    assert ("recipe/unknown-key", "9:13 variants.a.set.stages.finetune.optim.lrr") in found
    assert ("recipe/set", "10:13 variants.b.set.stages.fine.optim.lr") in found
    assert ("ablation/changes-nothing", "11:3 variants.c") in found


@pytest.mark.parametrize(
    "path",
    ["answers/acuracy", "answer/accuracy", "answers", "terms/image_ordr", "terms/image_order/accuracy"],
)
def test_the_first_measure_must_be_one_of_all_arms(tmp_path, path):
    head = HEAD.replace("right: answers/accuracy", f"right: {path}")
    with pytest.raises(UserError, match="ablation/unknown-measure"):
        read_arms(read_grid(write_grid(tmp_path, tmp_path, head)))


def test_a_further_measure_must_be_one_of_some_arm(tmp_path):
    read(tmp_path, "")
    head = HEAD.replace("terms/image_order/", "terms/no_term/")
    with pytest.raises(UserError, match=r"measures\.order: got `terms/no_term/accuracy`"):
        read_arms(read_grid(write_grid(tmp_path, tmp_path, head)))


def test_a_branch_needs_a_stage_that_another_one_follows(tmp_path):
    for stage in ("finetune", "pretran"):
        head = HEAD.replace("set:", f"branch: {{after: {stage}, times: 2}}\nset:")
        with pytest.raises(UserError, match="ablation/branch"):
            read_arms(read_grid(write_grid(tmp_path, tmp_path, head)))


def test_figures_that_a_recipe_can_give():
    recipe = read_text(DIRECT)
    for path in ("answers/accuracy/any type", "answers/accuracy_blank", "answers/changed_swapped", "restore/text_order",
                 "answers/image_attention", "terms/next_token", "terms/guided_loss/mass"):  # fmt: skip
        assert has_figure(recipe, path), path
    empty = read_text(DIRECT, overrides=["evaluate.controls=[swapped, {empty: e.png}]"])
    assert has_figure(empty, "answers/accuracy_empty") and not has_figure(empty, "answers/accuracy_blank")
    for path in ("answers/accuracy_black", "answers/accuracy/", "terms/text_order", "answers/", "x/accuracy"):
        assert not has_figure(recipe, path), path


def test_equal_values_of_a_product_are_equal_variants(tmp_path):
    for values in ("[1.0e-4, 0.0001]", "[0.5, 0.5]", "[1, 1.0]"):
        text = f"  w: {{product: {{stages.finetune.optim.lr: {values}}}}}\n"
        assert refused(tmp_path, text) == [("ablation/equal-variants", "9:3 variants.w")]


def test_the_last_value_of_a_key_counts_also_if_it_was_set_before(tmp_path):
    lr = "stages.finetune.optim.lr"
    text = f"  w: {{set: {{{lr}: 7.0e-4}}, product: {{{lr}: [5.0e-4, 9.0e-4]}}}}\n"
    path = write_grid(tmp_path, tmp_path, HEAD.replace("set: {", f"set: {{{lr}: 5.0e-4, ") + text)
    file = read_grid(path)
    with pytest.raises(UserError, match=r"`w/0.0005`, which trains like the base"):
        read_arms(file)
    head = HEAD.replace("set: {", f"set: {{{lr}: 5.0e-4, stages.finetune.optim: {{lr: 6.0e-4, clip: 1.0}}, ")
    arms = read_arms(read_grid(write_grid(tmp_path, tmp_path, head + f"  w: {{set: {{{lr}: 5.0e-4}}}}\n")))
    assert [arm.recipe.stages["finetune"].optim.lr for arm in arms if arm.name in ("base", "w")] == [
        6e-4,
        5e-4,
    ]
