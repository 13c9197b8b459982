"""Lines of a conversation: paths and completions, and, in a terminal, the history and Tab."""

from __future__ import annotations

import os
import pty
import sys
import time

import pytest

from lmmkit.commands.support.chat_lines import COMMANDS, HELP, completions, paths_in

READS = "from lmmkit.commands.support.chat_lines import edit_lines, read_line; edit_lines()\nwhile x := read_line(): print(repr(x))"


def test_paths_are_read_as_they_are_or_as_a_shell_reads_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my cat's.png").touch()
    assert paths_in("my cat's.png") == ["my cat's.png"] and paths_in("~/my cat's.png") == ["~/my cat's.png"]
    assert paths_in("a.png 'b c.png' d\\ e.png") == ["a.png", "b c.png", "d e.png"]
    assert paths_in("it's.png") == ["it's.png"] and paths_in(" ") == []


def test_completions_are_commands_and_paths(tmp_path):
    for name in ("cat 1.png", "cat[2].png", "dog.png"):
        (tmp_path / name).touch()
    (tmp_path / "cats").mkdir()
    assert completions("/") == ["/image ", "/reset", "/help"] and completions("/r") == ["/reset"]
    assert completions("") == completions("wh") == completions("/reset x") == []
    assert completions(f"/image {tmp_path}/cat") == [
        f"/image {tmp_path}/{name}" for name in ("cat 1.png", "cat[2].png", "cats/")
    ]
    assert completions(f"/image {tmp_path}/cat[") == [f"/image {tmp_path}/cat[2].png"]
    assert all(name in HELP for name in COMMANDS)


@pytest.mark.skipif(sys.platform == "win32", reason="no terminals of this kind")
def test_a_terminal_has_a_history_and_completes_paths(tmp_path):
    (tmp_path / "one.png").touch()
    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, "-c", READS])
    keys = [b"how many\r", b"\x1b[A?\r", f"/im\t{tmp_path}/o\t\r".encode(), b"\xff\r", b"\x04"]
    try:
        text = _after(terminal, b"> ")
        for key in keys:
            os.write(terminal, key)
            text += _after(terminal, b"> " if key != b"\x04" else b"")
    finally:
        os.waitpid(child, 0)
        os.close(terminal)
    shown = text.decode(errors="replace")
    assert "'how many'" in shown and "'how many?'" in shown and f"'/image {tmp_path}/one.png'" in shown
    assert "'\\udcff'" in shown, "bytes that are no text are kept, for the tokenizer to refuse"


def _after(terminal: int, end: bytes) -> bytes:
    """Returns what a terminal shows until a line begins with `end`."""
    text, until = b"", time.monotonic() + 20
    while time.monotonic() < until and not (end and text.endswith(end)):
        try:
            text += os.read(terminal, 4096)
        except OSError:  # the child has ended
            break
    return text
