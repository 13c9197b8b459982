"""Messages name only commands and options that exist, and each option with a command that has it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from lmmkit.cli import app
from lmmkit.errors import all_codes

PACKAGE = Path(__file__).resolve().parent.parent / "lmmkit"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
SPAN = re.compile(r"`([^`]*)`")
OF_RECIPES = {"--root", "--set", "--trust-files"}  # every command that reads a recipe has --root and --set


def leaves() -> Iterator[tuple[str, set[str]]]:
    """Yields every command by its words, with its options."""

    def below(command, words: str) -> Iterator[tuple[str, set[str]]]:
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                yield from below(inner, f"{words} {name}".strip())
        else:
            yield words, {o for each in command.params for o in (*each.opts, *each.secondary_opts)}

    yield from below(get_command(app), "")


COMMANDS = dict(leaves())
GROUPS = {name.rpartition(" ")[0] for name in COMMANDS} - {""}
OPTIONS = set().union(*COMMANDS.values())


def command_of(words: list[str]) -> tuple[str, list[str]]:
    """Returns the command that words after `lmmkit` begin with, and the other words."""
    for n in (2, 1):
        if (name := " ".join(words[:n])) in COMMANDS:
            return name, words[n:]
    return "", words


def wrong(text: str) -> Iterator[str]:
    """Yields what is wrong in the commands of one message, which are in backticks."""
    for span in SPAN.findall(text):
        if not span.startswith("lmmkit ") or span == "lmmkit {}":
            continue
        words = span.split()[1:]
        name, rest = command_of(words)
        if name:
            missing = {w.partition("=")[0] for w in rest if w.startswith("--")} - COMMANDS[name]
            if missing:
                yield f"`lmmkit {name}` has no {', '.join(missing)}: {text}"
        elif words[0] not in GROUPS or len(words) > 1:
            yield f"no command `{span}`: {text}"


@pytest.mark.parametrize("code", all_codes().values(), ids=all_codes())
def test_a_message_names_an_option_together_with_its_command(code):
    """Checks that what a hint asks a user to type works, whichever command prints the hint."""
    for text in (code.cause, code.expected, code.hint):
        assert not list(wrong(text))
        unknown = set(OPTION.findall(text)) - OPTIONS - OF_RECIPES
        assert not unknown or "torchrun" in text, unknown
    for text in (code.expected, code.hint):
        plain = SPAN.sub(lambda span: "" if span[1].startswith("lmmkit ") else span[0], text)
        alone = set(OPTION.findall(plain)) - OF_RECIPES
        assert not alone or "torchrun" in text, f"{code.code}: name the command that has {alone}"


def strings() -> Iterator[tuple[str, str]]:
    """Yields (place, text) of all strings in the package; a formatted value is `{}`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        inner = {
            id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
                yield f"{path.name}:{node.lineno}", "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                yield f"{path.name}:{node.lineno}", node.value


def test_all_strings_of_the_package_name_commands_that_exist():
    found = 0
    for place, text in strings():
        for span in SPAN.findall(text):
            if span.startswith("lmmkit "):
                found += 1
                assert not list(wrong(f"`{span}`")), place
    assert found > 25


def test_what_is_wrong_would_be_found():
    for text in ("`lmmkit trane x`", "`lmmkit model import SRC DST --resume`", "`lmmkit eval RUN --resume`"):
        assert list(wrong(text)), text
    for text in (
        "`lmmkit train ... --resume`",
        "`lmmkit model import SRC DST --vision FOLDER`",
        "`lmmkit data check`",
    ):
        assert not list(wrong(text)), text
