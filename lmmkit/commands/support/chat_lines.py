"""Lines of a conversation in the terminal: line editing, a history, Tab, and what a line asks for."""

from __future__ import annotations

import glob
import io
import os
import shlex
import sys

COMMANDS = {
    "/image": "PATH...: images for the next question; again for more",
    "/reset": "begins again, as at the start: with the images of --image",
    "/help": "prints this list",
}
HELP = "\n".join(
    [f"{name:8}{what}" for name, what in COMMANDS.items()]
    + ["A line without / is a question. Ctrl-C stops the answer. An empty line or Ctrl-D ends."]
)  # fmt: skip


def edit_lines() -> None:
    """Gives `input` line editing, a history of this session, and Tab for commands and paths, where Python has them.
    Bytes that are no text are read as a question that the tokenizer refuses, or as those of a path."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    try:
        import readline  # which Windows lacks
    except ImportError:
        return
    libedit = "libedit" in (readline.__doc__ or "")  # as on macOS
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    readline.set_completer_delims("\n")  # a completion replaces the line, so paths may contain spaces
    readline.set_completer(lambda line, n: [*completions(line), None][n])


def completions(line: str) -> list[str]:
    """Returns the lines that a line may be the beginning of: with a command, or the path of an image."""
    command, space, path = line.partition(" ")
    if not space:
        names = [name for name in COMMANDS if line and name.startswith(line)]
        return ["/image " if name == "/image" else name for name in names]
    if command != "/image":
        return []
    found = sorted(glob.glob(glob.escape(os.path.expanduser(path.lstrip())) + "*"))
    return [f"/image {each}{'/' if os.path.isdir(each) else ''}" for each in found]


def read_line() -> str:
    """Returns a line without white space around it; empty at the end of the input."""
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def paths_in(text: str) -> list[str]:
    """Returns the paths that follow `/image`: the text as a whole if it is a file, else as a shell reads it."""
    if os.path.exists(os.path.expanduser(text)):
        return [text]
    try:
        return shlex.split(text)
    except ValueError:  # a quotation mark without the other one
        return [text]
