"""All commands: text is printed as it is, problems have no traceback, files that cannot be written are problems."""

from __future__ import annotations

import errno
import io

import pytest
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmmkit.commands.support import common
from lmmkit.errors import UserError
from lmmkit.errors.commands import EXISTS

ODD = "x [draft] y [/q] [bold]z :fire:"


def test_text_of_users_is_never_markup(capsys):
    common.out.print(ODD)
    table = Table(title=ODD)
    table.add_column(ODD)
    table.add_row(ODD)
    common.out.print(table)
    common.show(UserError(EXISTS.at(ODD, got=ODD)))
    out, err = capsys.readouterr()
    assert out.count(ODD) == 4 and err.count(ODD) == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_prose_is_broken_between_words_on_a_terminal_only(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=30)
    line = "  hint  Take one of these: first, second, third-and-last."
    found = common.wrapped(line, console, 6)
    lines = found.splitlines()
    assert " ".join(found.split()) == " ".join(line.split())
    if terminal:
        assert len(lines) == 3 and max(map(len, lines)) <= 30
        assert all(each.startswith(8 * " ") for each in lines[1:])
    else:
        assert found == line
    assert common.wrapped("/" + "x" * 50, console) == "/" + "x" * 50, "a path is not broken"


def test_terminal_codes_in_a_problem_are_not_printed(capsys):
    common.show(UserError(EXISTS.at("a\x1b[31mb", got="c\x07d")))
    err = capsys.readouterr().err
    assert "\x1b" not in err and "\x07" not in err and "a?[31mb" in err


def test_terminal_codes_in_a_table_are_not_printed(capsys):
    table = Table(title="run\x1b[31m/a", caption="\x07below")
    for heading in ("A: \x1bx", "B"):
        table.add_column(heading)
    table.add_row("\x1b[2Jcell", Text("plain"))
    for _ in range(2):
        common.print_table(table)
        text = capsys.readouterr().out
        assert "\x1b" not in text and "\x07" not in text
        assert all(shown in text for shown in ("run?[31m/a", "?below", "A: ?x", "?[2Jcell", "plain"))


@pytest.mark.parametrize(
    "name",
    [
        "ENOSPC",
        "EROFS",
        "EACCES",
        "EDQUOT",
        "ENOTDIR",
        "EEXIST",
        "EISDIR",
        "ENAMETOOLONG",
        "ELOOP",
        "EBUSY",
        "EIO",
        "ESTALE",
        "EMFILE",
    ],
)
def test_a_file_that_the_system_refuses_is_a_problem_of_the_machine(capsys, name):
    @common.reporting
    def command():
        raise OSError(getattr(errno, name), "refused", "some/file")

    with pytest.raises(typer.Exit) as error:
        command()
    text = capsys.readouterr().err
    assert error.value.exit_code == 3 and "files/cannot-write" in text and "some/file" in text


def test_other_errors_of_the_system_are_bugs_and_ctrl_c_is_130(capsys):
    @common.reporting
    def bug():
        raise FileNotFoundError(errno.ENOENT, "gone", "x")

    @common.reporting
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(FileNotFoundError):
        bug()
    with pytest.raises(typer.Exit) as error:
        stopped()
    assert error.value.exit_code == 130 and "stopped" in capsys.readouterr().err


def test_too_little_memory_is_a_problem_of_the_machine_in_every_command(capsys):
    @common.reporting
    def command():
        bytearray(2**50)

    with pytest.raises(typer.Exit) as error:
        command()
    text = capsys.readouterr().err
    assert error.value.exit_code == 3 and "machine/out-of-memory" in text and "this command" in text
