"""Grid files: their keys, and all problems at once with their lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmmkit.ablation.arms import read_arms
from lmmkit.ablation.grid import read_grid
from lmmkit.errors import UserError
from tests.support.grids import write_grid

GRID = """
base: plain.yaml
root: ROOT
seeds: [1, 2]
measures: {right: answers/accuracy}
variants:
  rate: {set: {stages.finetune.optim.lr: 1.0e-3}}
"""


def problems(path):
    with pytest.raises(UserError) as error:
        read_arms(read_grid(path))
    return error.value.problems


def test_a_grid_has_defaults_and_its_recipes_are_found_beside_it(tmp_path):
    file = read_grid(write_grid(tmp_path, tmp_path, GRID))
    assert file.name == "grid" and file.grid.equal == ("steps",) and file.grid.interval == "seeds"
    assert file.grid.root == (str(tmp_path),)
    assert file.recipe_path("plain.yaml") == tmp_path / "plain.yaml"
    assert file.recipe_path("quickstart").name == "quickstart.yaml", "a shipped one"
    assert read_grid(file.path, roots=[tmp_path / "a", tmp_path / "b"]).grid.root == (
        str(tmp_path / "a"),
        str(tmp_path / "b"),
    )


def test_all_problems_of_a_grid_are_reported_at_once_with_their_lines(tmp_path):
    text = (
        GRID.replace("plain.yaml", "plan.yaml")
        .replace("[1, 2]", "[1]")
        .replace("seeds", "equals: 1\nseeds", 1)
    )
    path = write_grid(tmp_path, tmp_path, text.replace("  rate", "  base"))
    found = {problem.code: problem for problem in problems(path)}
    assert set(found) == {"recipe/unknown-key", "recipe/name", "ablation/unknown-recipe", "ablation/one-seed"}
    assert found["recipe/unknown-key"].where == f"{path}:4:1 equals"
    assert found["ablation/unknown-recipe"].where == f"{path}:2:1 base"
    assert found["ablation/one-seed"].where.endswith("5:1 seeds")


def test_one_seed_is_enough_for_an_interval_over_questions_or_with_two_roots(tmp_path):
    one = GRID.replace("[1, 2]", "[1]")
    assert read_arms(read_grid(write_grid(tmp_path, tmp_path, one + "interval: questions\n")))
    assert read_arms(read_grid(write_grid(tmp_path, tmp_path, one.replace("ROOT", "[a, b]"))))


@pytest.mark.parametrize(
    "change",
    [
        ("[1, 2]", "[1, 1]"),
        ("ROOT", "[a, a]"),
        ("ROOT", "[a, ./b/../a/]"),
        ("seeds", "equal: [time, time]\nseeds"),
    ],
)
def test_an_item_that_is_there_twice_is_refused(tmp_path, change):
    (problem,) = problems(write_grid(tmp_path, tmp_path, GRID.replace(*change)))
    assert problem.code == "ablation/twice"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("[1, 2]", "[1, x]"), "recipe/wrong-type"), (("[1, 2]", "[]"), "recipe/out-of-range"),
        (("seeds: [1, 2]", ""), "recipe/missing-key"), (("seeds", "equal: speed\nseeds"), "recipe/wrong-type"),
        (("seeds", "branch: {after: pretrain, times: 1}\nseeds"), "recipe/out-of-range"),
    ],
)  # fmt: skip
def test_values_of_other_types_are_refused(tmp_path, change, code):
    assert code in {
        problem.code for problem in problems(write_grid(tmp_path, tmp_path, GRID.replace(*change)))
    }


def test_a_seed_that_the_seeds_of_the_grid_would_replace_is_refused(tmp_path):
    text = GRID + "  a: {set: {seed: 3, stages.finetune.optim.lr: 1.0e-2}}\n  b: {product: {seed: [4, 5]}}\n"
    path = write_grid(tmp_path, tmp_path, text.replace("seeds", "set: {seed: 2}\nseeds"))
    found = [problem.where.split(" ")[1] for problem in problems(path) if problem.code == "ablation/set-seed"]
    assert found == ["set.seed", "variants.a.set.seed", "variants.b.product.seed"]


def test_a_product_and_branches_of_more_runs_than_anybody_trains_are_refused_at_once(tmp_path):
    axes = ", ".join(
        f"stages.finetune.optim.{key}: [{', '.join(['0.1'] * 200)}]" for key in ("lr", "warmup", "clip")
    )
    text = (
        GRID.replace("seeds", "branch: {after: pretrain, times: 100000}\nseeds")
        + f"  a: {{product: {{{axes}}}}}\n"
    )
    (branch,) = problems(write_grid(tmp_path, tmp_path, text))
    assert branch.code == "recipe/out-of-range" and branch.where.endswith("branch.times")
    (product,) = problems(write_grid(tmp_path, tmp_path, text.replace("100000", "2")))
    assert product.code == "ablation/many-variants" and product.got == "8,000,000 combinations"
    assert product.where.endswith("variants.a.product")


def test_names_that_no_file_can_have_are_problems(tmp_path):
    found = problems(
        write_grid(tmp_path, tmp_path, GRID.replace("plain.yaml", "y" * 300).replace("ROOT", '"a\\0b"'))
    )
    assert [problem.code for problem in found] == ["run/not-a-folder", "ablation/unknown-recipe"]
    assert found[0].where.endswith("root.0")


def test_a_value_that_is_no_number_is_one_problem(tmp_path):
    (problem,) = problems(write_grid(tmp_path, tmp_path, GRID.replace("1.0e-3", ".nan")))
    assert problem.got == "the number nan" and problem.where.endswith(
        "variants.rate.set.stages.finetune.optim.lr"
    )


def test_a_file_that_is_no_grid_is_refused(tmp_path):
    path = tmp_path / "grid.yaml"
    for text in ("", "- a\n", "a: [\n", "a: &x 1\n"):
        path.write_text(text)
        assert all(problem.where.startswith(str(path)) for problem in problems(path))


def test_a_shipped_grid_is_named_as_the_command_names_it(tmp_path):
    assert read_grid(Path("small/guided")).argument == "small/guided"
    path = write_grid(tmp_path, tmp_path, GRID)
    assert read_grid(path).argument == str(path)
