"""Loading plugins, and observers: the W&B example of docs/plugins.md with a stand-in, and what is refused."""

from __future__ import annotations

import re
import sys
import types
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

import lmmkit
import lmmkit.registry as registry_module
from lmmkit.errors import UserError
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import read_text
from lmmkit.registry import open_registry
from lmmkit.training.run import train
from tests.conftest import DIRECT, PLAIN

DOCS = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text()
SHORT = PLAIN.replace("steps: 6", "steps: 2")
HOOKIMPL = "from lmmkit.api import hookimpl\n\n@hookimpl\n"


@pytest.fixture
def wandb(monkeypatch):
    """Returns a module that records its calls."""
    module = types.ModuleType("wandb")
    module.calls = []  # type: ignore[attr-defined]
    module.init = lambda **options: module.calls.append(("init", options))  # type: ignore[attr-defined]
    module.log = lambda scalars, step: module.calls.append(("log", step, scalars))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def example(tmp_path):
    """Writes the file of the docs, new in every test."""
    (code,) = re.findall(r"```python\n(\"\"\"Sends the figures of a run to Weights.*?)```", DOCS, re.DOTALL)
    path = tmp_path / "wandb_log.py"
    path.write_text(f"{code}\n# {tmp_path}\n")  # a file is loaded once a process, by its content
    return path


def test_the_example_sends_every_step_to_wandb_and_continues_after_a_resume(scenes, example, wandb, tmp_path):
    recipe = read_text(SHORT, root=scenes, overrides=[f"output.observers=[{example}]"])
    run = train(recipe, out=tmp_path / "night", trust_files=True).run
    (kind, first), *logged = wandb.calls
    assert (kind, first["id"], first["resume"]) == ("init", "night", "allow")
    assert first["config"]["stages"]["pretrain"]["optim"]["lr"] == 2.0e-3
    assert first["config"]["speed"]["share_prefix"] is True, "defaults too"
    lines = run.read_metrics()
    assert [step for _, step, _ in logged] == [line["step"] for line in lines] == [1, 2, 3, 4]
    for (_, _, scalars), line in zip(logged, lines, strict=True):
        assert scalars == {k: v for k, v in line.items() if isinstance(v, float)} and "loss" in scalars
    wandb.calls.clear()
    train(recipe, out=run.path, trust_files=True, resume=True)
    assert [call[0] for call in wandb.calls] == ["init"], "nothing was left to do"


def test_observers_may_come_and_go_and_no_model_needs_them(scenes, example, wandb, tmp_path):
    recipe = read_text(SHORT, root=scenes, overrides=[f"output.observers=[{example}]"])
    run = train(recipe, out=tmp_path / "run", trust_files=True).run
    example.unlink()
    assert lmmkit.load(run.path, device="cpu").stage == "finetune"
    train(read_text(SHORT, root=scenes), out=run.path, resume=True)


def test_an_observer_that_raises_is_logged_once_and_the_run_continues(scenes, tmp_path, caplog):
    path = tmp_path / "broken.py"
    path.write_text(
        "from lmmkit.api import hookimpl\n\n@hookimpl\ndef lmmkit_logged(step):\n    raise OSError('no network')\n"
    )
    recipe = read_text(SHORT, root=scenes, overrides=[f"output.observers=[{path}]"])
    run = train(recipe, out=tmp_path / "run", trust_files=True).run
    assert len(run.read_metrics()) == 4
    (warning,) = [r.getMessage() for r in caplog.records if "not called again" in r.getMessage()]
    assert warning == f"lmmkit_logged of {path} raised OSError: no network; it is not called again"


def test_an_observer_among_the_plugins_is_refused_with_its_place(tmp_path):
    (tmp_path / "figures.py").write_text(f"{HOOKIMPL}def lmmkit_logged(step):\n    pass\n")
    with pytest.raises(UserError) as error:
        open_registry(
            {"figures": "figures.py"}, where={"figures": "plugins.figures"}, base=tmp_path, trust_files=True
        )
    (problem,) = error.value.problems
    assert problem.code == "plugin/no-component" and problem.where == "plugins.figures"
    assert problem.got.startswith("an observer, figures.py ") and "`output.observers`" in problem.hint


def test_modules_without_observer_hooks_are_refused_together_with_other_problems(scenes, tmp_path):
    (tmp_path / "no_hook.py").write_text("x = 1\n")
    (tmp_path / "typo.py").write_text(
        "from lmmkit.api import hookimpl\n\n@hookimpl\ndef lmmkit_loged(step):\n    pass\n"
    )
    names = [str(tmp_path / name) for name in ("no_hook.py", "typo.py", "absent.py")] + ["wandb_log"]
    override = f"output.observers=[{', '.join(names)}]"
    with pytest.raises(UserError) as error:
        prepare(read_text(DIRECT, root=scenes, overrides=[override]), trust_files=True)
    codes = [p.code for p in error.value.problems]
    assert codes == ["plugin/no-observer-hook", "plugin/bad-hook", "plugin/no-file", "plugin/unknown"]
    assert all("output.observers" in p.where for p in error.value.problems)
    with pytest.raises(UserError, match="plugin/untrusted-file"):
        prepare(read_text(DIRECT, root=scenes, overrides=[f"output.observers=[{names[0]}]"]))


def test_a_module_is_registered_once_under_the_name_of_its_module_or_file(tmp_path):
    (tmp_path / "mine.py").write_text(f"{HOOKIMPL}def lmmkit_logged(step): pass\n# {tmp_path}\n")
    wanted = {"text_order": "text_order", "image_order": "image_order", "directed_token": "directed_token"}
    observers = {"mine.py": "", "./mine.py": ""}
    registry = open_registry(wanted, where=wanted, observers=observers, base=tmp_path, trust_files=True)
    names = [name for name, _ in registry.manager.list_name_plugin()]
    assert names == ["lmmkit_shuffle", "lmmkit_directed_token", "mine.py"]
    assert list(registry.components) == list(wanted) and len(set(registry.observers)) == 2
    assert len({found.origin for found in registry.components.values()}) == 1, "one distribution offers all"


def test_a_plugin_with_an_unknown_hook_does_not_make_others_fail(tmp_path):
    (tmp_path / "typo.py").write_text(f"{HOOKIMPL}def lmmkit_loged(step): pass\n")
    (tmp_path / "args.py").write_text(f"{HOOKIMPL}def lmmkit_logged(steps): pass\n")
    observers = {"typo.py": "first", "args.py": "second"}
    good = {"text_order": "text_order"}
    with pytest.raises(UserError) as error:
        open_registry(good, where=good, observers=observers, base=tmp_path, trust_files=True)
    first, second = error.value.problems
    assert (first.code, first.where, second.code, second.where) == (
        "plugin/bad-hook", "first", "plugin/bad-hook", "second",
    )  # fmt: skip
    assert "lmmkit_loged" in first.got and "steps" in second.got and "\n" not in second.got


def test_a_name_that_two_packages_offer_is_refused(monkeypatch):
    """Neither of two packages may silently replace the other, nor a plugin of lmmkit."""
    (ours,) = [point for point in entry_points(group="lmmkit.plugins") if point.name == "image_order"]
    theirs = EntryPoint("image_order", "json", "lmmkit.plugins")
    for order in ([ours, theirs], [theirs, ours]):
        monkeypatch.setattr(registry_module, "entry_points", lambda group, order=order: order)
        with pytest.raises(UserError) as error:
            open_registry({"mine": "image_order"}, where={"mine": "here"})
        (problem,) = error.value.problems
        assert problem.code == "plugin/two-packages" and "json" in problem.got and "lmmkit" in problem.got


def test_too_little_memory_is_no_fault_of_a_plugin(tmp_path):
    (tmp_path / "mine.py").write_text("import torch\ntorch.empty(2**50, dtype=torch.uint8)\n")
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        open_registry({"mine": "mine.py"}, where={"mine": "here"}, base=tmp_path, trust_files=True)


def test_components_that_raise_are_a_problem(tmp_path):
    (tmp_path / "mine.py").write_text(f"{HOOKIMPL}def lmmkit_components(): return 1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError") as error:
        open_registry({"mine": "mine.py"}, where={"mine": "here"}, base=tmp_path, trust_files=True)
    assert [(p.code, p.where) for p in error.value.problems] == [("plugin/load-error", "here")]
