"""Hostile artefacts through the commands that read them: none runs, connects, hangs or leaves its folder."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from tests.support import audit_hooks
from tests.support.hostile_home import SECRET, Artefact, home_in, make_base, outside
from tests.trust import hostile_data, hostile_models, hostile_recipes, hostile_runs

KINDS = (hostile_recipes, hostile_data, hostile_models, hostile_runs)
ALL = [artefact for kind in KINDS for artefact in kind.artefacts()]
FEW = ALL[::12]  # of every kind some


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Makes the good things and imports all that a command imports, before a child is forked."""
    import timm  # noqa: F401
    from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    import lmmkit.cost_estimate
    import lmmkit.evaluate.run
    import lmmkit.import_export
    import lmmkit.training.run  # noqa: F401

    return make_base(tmp_path_factory.mktemp("base"))


def wrongs(artefact: Artefact, folder, base) -> list[str]:
    """Returns all that is wrong with how an artefact was met."""
    home = home_in(folder, base)
    words = artefact.spoil(home)
    before = outside(home)
    cache = Path(os.environ["LMMKIT_CACHE"])  # the user's own, where indexes of data go
    allowed = [cache, *(home.path / name for name in artefact.write)]
    met = audit_hooks.run(words, home.path, read=[cache, home.path], write=allowed)
    found = [f"it {breach}" for breach in met.breaches]
    if met.code not in artefact.code:
        found.append(f"exit {met.code}, not one of {artefact.code}: {met.output[-800:]}")
    if artefact.says not in met.output:
        found.append(f"no `{artefact.says}` in {met.output[-800:]}")
    if "Traceback" in met.output or SECRET in met.output:
        found.append(f"it says {met.output[-800:]}")
    if outside(home) != before:
        found.append(f"it left {outside(home).keys() ^ before.keys() or 'changes'} outside")
    return found


def test_there_are_enough_and_each_has_a_name_of_its_own():
    assert len(ALL) >= 400 and len({artefact.name for artefact in ALL}) == len(ALL)


@pytest.mark.parametrize("artefact", FEW, ids=lambda a: a.name)
def test_a_hostile_artefact_is_refused_or_harmless(artefact, tmp_path, base):
    assert not wrongs(artefact, tmp_path, base)


@pytest.mark.slow
def test_all_of_them_are(tmp_path, base):
    numbers = itertools.count()
    met = {artefact.name: wrongs(artefact, tmp_path / str(next(numbers)), base) for artefact in ALL}
    wrong = {name: found for name, found in met.items() if found}
    print(f"{len(met)} artefacts, {len(wrong)} not met as they should be")
    for name, found in wrong.items():
        print(name, found)
    assert not wrong


# ------------------------------------------------------------------ the watch reports what it should


def _system():
    import os

    os.system("true")


def _program():
    import subprocess

    subprocess.run(["true"], check=True)


def _connect():
    import socket

    with socket.socket() as one:
        one.settimeout(0.1)
        one.connect_ex(("127.0.0.1", 9))


def _look_up():
    import socket

    socket.getaddrinfo("127.0.0.1", 9)


def _unpickle():
    import pickle

    pickle.loads(b"cbuiltins\nlist\n.")


def _exec():
    exec("1")


def _eval():
    eval("1")


def _read():
    open("../outside/secret.txt").close()


def _write():
    open("beside.txt", "w").close()


def _remove():
    import os

    os.remove("recipe.yaml")


def _rename():
    import os

    os.rename("recipe.yaml", "../outside/recipe.yaml")


def _link():
    import os

    os.symlink("recipe.yaml", "../outside/link")


def _spin():
    while True:
        pass


def _module():
    import importlib.util
    from pathlib import Path

    Path("out").mkdir()
    Path("out/evil.py").write_text("x = 1")
    spec = importlib.util.spec_from_file_location("evil", "out/evil.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize(
    "action, breach",
    [
        (_system, "os.system"), (_program, "subprocess.Popen"), (_connect, "socket.connect"), (_look_up, "socket.getaddrinfo"),
        (_unpickle, "pickle.find_class"), (_module, "exec of"), (_read, "reads"), (_write, "writes"), (_remove, "os.remove"),
        (_rename, "os.rename"), (_link, "os.symlink"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_the_watch_reports(action, breach, tmp_path, base):
    home = home_in(tmp_path, base)
    met = audit_hooks.watched(lambda: action() or 0, home.path, read=[home.path], write=[home.path / "out"])
    assert any(breach in reported for reported in met.breaches), met


def test_the_watch_reports_code_that_did_not_come_with_a_package(tmp_path, base):
    """`exec` of a text, called where no package's own code is made."""
    home = home_in(tmp_path, base)
    for action in (_exec, _eval):
        met = audit_hooks.watched(lambda a=action: a() or 0, home.path, read=[home.path], write=[])
        assert any(reported.startswith(("exec of", "compile of")) for reported in met.breaches), met


def test_the_watch_gives_up_on_what_hangs(tmp_path, base, monkeypatch):
    import time

    home = home_in(tmp_path, base)
    monkeypatch.setattr(audit_hooks, "SECONDS", 1)
    assert audit_hooks.watched(_spin, home.path, read=[], write=[]).code is None
    monkeypatch.setattr(audit_hooks, "WALL", 0.5)
    met = audit_hooks.watched(lambda: time.sleep(60) or 0, home.path, read=[], write=[])
    assert met.code is None and met.seconds < 30


def test_a_bug_of_ours_differs_from_a_refusal(tmp_path, base):
    home = home_in(tmp_path, base)
    met = audit_hooks.watched(lambda: 1 // 0, home.path, read=[], write=[])
    assert met.code == 1 and "ZeroDivisionError" in met.output
