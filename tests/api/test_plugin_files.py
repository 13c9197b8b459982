"""Local plugin files: loaded once in each process, also in data workers."""

from __future__ import annotations

import pickle
import sys
from multiprocessing.reduction import ForkingPickler

import pytest

from lmmkit.api.plugin_files import load_file
from lmmkit.errors import UserError
from lmmkit.plan.instances import build_component
from lmmkit.registry import file_components, open_registry
from lmmkit.training.run import train
from tests.conftest import PLAIN

MINE = """
from __future__ import annotations
from dataclasses import dataclass
from lmmkit.api import AttnMass, AuxTask, Loss, Select, View, hookimpl

@dataclass(frozen=True, kw_only=True)
class Mine(Loss):
    power: float = 2.0
    needs = (AttnMass(q=Select(supervised=True)),)
    def value(self, ctx):
        return ctx[self.needs[0]].pow(self.power).sum()

@dataclass(frozen=True, kw_only=True)
class Again(AuxTask):
    text_loss = True
    def views(self, sample, rng):
        return [View(sample=sample, supervision="train")]

@hookimpl
def lmmkit_components():
    return {"mine": Mine, "again": Again}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    yield path
    _forget()


def _forget():
    """Removes the modules that a new process would not have."""
    for name in [name for name in sys.modules if name.startswith("lmmkit_file_")]:
        del sys.modules[name]


def test_a_component_of_a_file_unpickles_where_the_file_was_never_loaded(file):
    mine = build_component(file_components(file, trust_files=True)["mine"].cls, "mine", {"power": 3.0})
    raw = bytes(ForkingPickler.dumps(mine))
    _forget()
    again = pickle.loads(raw)
    assert (again.name, again.power) == ("mine", 3.0)
    assert type(again) is not type(mine) and type(again).__name__ == "Mine"
    assert pickle.loads(pickle.dumps(again)) == again


def test_a_changed_or_absent_file_is_not_run_by_a_worker(file):
    raw = pickle.dumps(build_component(file_components(file, trust_files=True)["mine"].cls, "mine", {}))
    _forget()
    file.write_text(MINE + "raise AssertionError('must not run')\n")
    with pytest.raises(UserError, match="plugin/changed-file"):
        pickle.loads(raw)
    file.unlink()
    with pytest.raises(UserError, match="got no file"):
        pickle.loads(raw)


def test_two_instances_share_one_module_and_a_broken_file_leaves_none(file, tmp_path):
    registry = open_registry(
        {"mine": str(file), "more": f"{file}:mine"}, where={"mine": "", "more": ""}, trust_files=True
    )
    assert registry.components["mine"].cls is registry.components["more"].cls
    (tmp_path / "broken.py").write_text("1 / 0")
    before = set(sys.modules)
    with pytest.raises(ZeroDivisionError):
        load_file(tmp_path / "broken.py")
    assert not [name for name in set(sys.modules) - before if name.startswith("lmmkit_file_")]


def test_with_workers_a_local_file_trains_as_without(tiny, file, tmp_path):
    text = PLAIN.replace(
        "stages:", f"plugins:\n  mine: {{use: {file}}}\n  again: {{use: {file}}}\nstages:", 1
    )
    text = text.replace("{next_token: 1.0}", "{next_token: 1.0, mine: 0.1, again: 0.5}")
    text = text.replace("{steps: 6}", "{steps: 2}")
    losses = []
    for workers in (0, 1):
        recipe = tiny(f"speed.workers={workers}", text=text)
        run = train(recipe, out=tmp_path / str(workers), trust_files=True).run
        losses.append([line["loss"] for line in run.read_metrics()])
    assert losses[0] == losses[1] and len(losses[0]) == 4
