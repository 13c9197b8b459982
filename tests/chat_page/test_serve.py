"""The server: on the loopback address only, and the command that starts it."""

from __future__ import annotations

import builtins
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image as Pil

from lmmkit.chat_page import serve as serve_module
from lmmkit.chat_page.serve import listening
from lmmkit.errors import MachineError
from tests.test_cli import run as lmmkit

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_page_is_on_the_loopback_address_only():
    with listening(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        port = listener.getsockname()[1]
        with pytest.raises(MachineError) as error:
            listening(port)
        (problem,) = error.value.problems
        assert (problem.code, problem.where) == ("chat/port", f"--port {port}")


class Started:
    """Replaces the server, and remembers with what it was started."""

    def __init__(self, session, token):
        self.state, self.token = session.state(), token
        started.append(self)

    def run(self, sockets):
        self.address = sockets[0].getsockname()


started: list[Started] = []


def test_the_command_prints_the_address_with_a_new_token_at_each_start(monkeypatch):
    monkeypatch.setattr(serve_module, "server_of", Started)
    texts = [lmmkit("chat", "--demo", "--web", "--seed", seed) for seed in (1, 2)]
    for text, each in zip(texts, started, strict=True):
        found = re.search(r"^http://127\.0\.0\.1:(\d+)/([\w-]{32})/$", text, re.MULTILINE)
        assert found and (int(found[1]), found[2]) == (each.address[1], each.token)
        assert each.state["waiting"] == [0] and len(each.state["questions"]) == 3
        assert "not trained on" in each.state["notes"][0]
    assert started[0].token != started[1].token


@pytest.mark.parametrize("words", [("--web", "--prompt", "x"), ("--port", "8123")])
def test_options_that_exclude_each_other_are_refused(words):
    assert "chat/web" in lmmkit("chat", "--demo", *words, code=2)


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, package):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return real(name, *arguments, **options)

    for name in [name for name in sys.modules if name.startswith("lmmkit.chat_page")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    text = lmmkit("chat", "--demo", "--web", code=3)
    assert "chat/no-web" in text and f"no package {package}" in text
    assert 'pip install "lmmkit[web]"' in text


@pytest.mark.slow
@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_program_serves_until_it_is_stopped_and_leaves_no_file(tmp_path, sign, code):
    command = [sys.executable, "-m", "lmmkit", "chat", "--demo", "--web"]
    Pil.new("RGB", (9, 9)).save(tmp_path / "mine.png")
    process = subprocess.Popen(
        [*command, "--image", str(tmp_path / "mine.png")], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert b"<title>lmmkit chat</title>" in urllib.request.urlopen(address, timeout=20).read()
        process.send_signal(sign)
        assert process.wait(60) == code
    finally:
        process.kill()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
