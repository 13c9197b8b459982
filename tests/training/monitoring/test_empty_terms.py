"""What a run alone can show, for each kind of plugin: terms without items, and parameters without a gradient."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmmkit.errors import UserError
from lmmkit.training.monitoring.empty_terms import IDLE_STEPS, EmptyTermCheck
from lmmkit.training.run import train
from lmmkit.training.step import StepReport
from lmmkit.training.triggers import Position
from tests.conftest import PLAIN
from tests.support import idle_plugin

FILE = Path(idle_plugin.__file__)
KINDS = ("mean", "micro_batch", "rows", "whole", "no_views")  # of terms
SHORT = (
    "stages.pretrain.length.steps=2",
    "stages.finetune.length.steps=2",
    "output.images_every=0",
    "output.save_every=0",
)


def recipe_text(names: tuple[str, ...], one: bool, by: str = "", model: str = "") -> str:
    """Returns a recipe with components of the file, of which the terms have a weight."""
    settings = {"silent": f", one: {str(one).lower()}"}
    uses = "".join(f"  {name}: {{use: '{FILE}:{name}'{settings.get(name, '')}}}\n" for name in names)
    terms = "".join(f", {name}: 0.1" for name in names if name in KINDS)
    losses = f"{{next_token: {{weight: 1.0{by}}}{terms}}}"
    text = PLAIN.replace("stages:", f"plugins:\n{uses}stages:", 1).replace("{next_token: 1.0}", losses)
    text = text.replace(
        "train:  {connector: {}, text: {lr: 1.0e-3}}",
        "train:  {connector: {}, text: {lr: 1.0e-3}, plugins: {}}",
    )
    return text.replace("connector: {kind: mlp2x_gelu}", f"connector: {{kind: mlp2x_gelu{model}}}")


def test_a_term_of_any_kind_without_items_ends_the_run_by_its_name(tiny, tmp_path):
    recipe = tiny(*SHORT, text=recipe_text(("silent", *KINDS), one=False))
    with pytest.raises(UserError) as error:
        train(recipe, out=tmp_path / "run", trust_files=True)
    found = {(p.code, p.where) for p in error.value.problems}
    assert found == {("train/empty-term", f"stages.pretrain.losses.{name}") for name in KINDS}
    for problem in error.value.problems:
        name = problem.where.split(".")[-1]
        assert problem.got == f"no item for term `{name}` in the first 2 steps"


@pytest.mark.parametrize("last", [1, IDLE_STEPS - 1, IDLE_STEPS, None])
def test_one_item_in_the_first_steps_is_enough(last):
    check = EmptyTermCheck(1000)

    def run():
        for step in range(1, IDLE_STEPS + 2):
            value = 1.0 if step == last else None
            report = StepReport(loss=1.0, terms={"whole": value, "loss/x": None}, grad_norm=1.0, tokens=1)
            check.check(report, Position("s", step, step))

    if last is not None:
        return run()
    with pytest.raises(UserError, match="train/empty-term") as error:
        run()
    assert "first 50 steps" in error.value.problems[0].got


def test_a_parameter_without_gradient_is_reported_for_each_kind(tiny, tmp_path, capsys):
    """Reports the spare parameter of each kind, all of a loss of rows and of weights, and nothing that is used."""
    names = ("silent", "mean", "micro_batch", "rows", "whole", "weigher", "registers", "halves")
    text = recipe_text(names, one=True, by=", by: [weigher]", model=", reduce: halves")
    recipe = tiny(
        *SHORT, "stages.pretrain.tokens=[registers]", "stages.finetune.tokens=[registers]", text=text
    )
    train(recipe, out=tmp_path / "run", trust_files=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if "gave it no gradient" in line]
    spare = {f"plugins.{name}.spare" for name in names if name != "silent"}
    want = spare | {f"plugins.{name}.used" for name in ("rows", "weigher")}
    for stage in ("pretrain", "finetune"):
        found = [line.split(": ")[1].split()[0] for line in lines if line.startswith(f"stages.{stage}.train")]
        assert sorted(found) == sorted(want), stage
        assert all("2 steps gave it no gradient" in line for line in lines)
