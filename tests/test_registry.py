"""Plugins that only listen: the W&B example of docs/plugins.md on a stand-in, and what is refused."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

import lmmkit
from lmmkit.errors import UserError
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import read_text
from lmmkit.training.run import train
from tests.conftest import DIRECT, PLAIN

DOCS = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text()
SHORT = PLAIN.replace("steps: 6", "steps: 2")


@pytest.fixture
def wandb(monkeypatch):
    """A module that remembers what it was told."""
    module = types.ModuleType("wandb")
    module.said = []  # type: ignore[attr-defined]
    module.init = lambda **said: module.said.append(("init", said))  # type: ignore[attr-defined]
    module.log = lambda scalars, step: module.said.append(("log", step, scalars))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def example(tmp_path):
    """The file of the docs, new in every test."""
    (code,) = re.findall(r"```python\n(\"\"\"Tells Weights.*?)```", DOCS, re.DOTALL)
    path = tmp_path / "wandb_log.py"
    path.write_text(f"{code}\n# {tmp_path}\n")  # a file is loaded once a process, by its content
    return path


def test_the_example_tells_wandb_of_every_step_and_goes_on_after_a_resume(scenes, example, wandb, tmp_path):
    recipe = read_text(SHORT, root=scenes, overrides=[f"output.observers=[{example}]"])
    run = train(recipe, out=tmp_path / "night", trust_files=True).run
    (kind, first), *logged = wandb.said
    assert (kind, first["id"], first["resume"]) == ("init", "night", "allow")
    assert first["config"]["stages"]["pretrain"]["optim"]["lr"] == 2.0e-3
    assert first["config"]["speed"]["share_prefix"] is True, "defaults too"
    lines = run.read_metrics()
    assert [step for _, step, _ in logged] == [line["step"] for line in lines] == [1, 2, 3, 4]
    for (_, _, scalars), line in zip(logged, lines, strict=True):
        assert scalars == {k: v for k, v in line.items() if isinstance(v, float)} and "loss" in scalars
    wandb.said.clear()
    train(recipe, out=run.path, trust_files=True, resume=True)
    assert [said[0] for said in wandb.said] == ["init"], "nothing was left to do"


def test_observers_may_come_and_go_and_no_model_needs_them(scenes, example, wandb, tmp_path):
    recipe = read_text(SHORT, root=scenes, overrides=[f"output.observers=[{example}]"])
    run = train(recipe, out=tmp_path / "run", trust_files=True).run
    example.unlink()
    assert lmmkit.load(run.path, device="cpu").stage == "finetune"
    train(read_text(SHORT, root=scenes), out=run.path, resume=True)


def test_an_observer_that_raises_is_told_of_once_and_the_run_goes_on(scenes, tmp_path, caplog):
    path = tmp_path / "broken.py"
    path.write_text(
        "from lmmkit.api import hookimpl\n\n@hookimpl\ndef lmmkit_logged(step):\n    raise OSError('no network')\n"
    )
    recipe = read_text(SHORT, root=scenes, overrides=[f"output.observers=[{path}]"])
    run = train(recipe, out=tmp_path / "run", trust_files=True).run
    assert len(run.read_metrics()) == 4
    (told,) = [r.getMessage() for r in caplog.records if "not called again" in r.getMessage()]
    assert "lmmkit_logged" in told and "OSError: no network" in told


def test_what_cannot_listen_is_refused_with_the_rest(scenes, tmp_path):
    (tmp_path / "deaf.py").write_text("x = 1\n")
    (tmp_path / "typo.py").write_text(
        "from lmmkit.api import hookimpl\n\n@hookimpl\ndef lmmkit_loged(step):\n    pass\n"
    )
    names = [str(tmp_path / name) for name in ("deaf.py", "typo.py", "absent.py")] + ["wandb_log"]
    overrides = [f"output.observers=[{', '.join(names)}]", "plugins.directed_token.plac=end"]
    with pytest.raises(UserError) as error:
        prepare(read_text(DIRECT, root=scenes, overrides=overrides[:1]), trust_files=True)
    codes = [p.code for p in error.value.problems]
    assert codes == ["plugin/no-observer-hook", "plugin/bad-hook", "plugin/no-file", "plugin/unknown"]
    assert all("output.observers" in p.where for p in error.value.problems)
    with pytest.raises(UserError, match="plugin/untrusted-file"):
        prepare(read_text(DIRECT, root=scenes, overrides=[f"output.observers=[{names[0]}]"]))
