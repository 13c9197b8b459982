"""`lmmkit explain`: cause and fix of a code, the list of all, a code with a typing error, no torch; how problems print."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from lmmkit.commands.support.common import show
from lmmkit.errors import Problem, UserError, all_codes
from lmmkit.errors.weights import MISMATCH, MISSING, PICKLE, SHARD
from tests.test_cli import run


def words(text: str) -> str:
    """Text without the line breaks and the frame of a table."""
    return " ".join(re.sub(r"[│┃]", " ", text).split())


def test_a_code_is_explained_with_cause_expected_and_hint():
    lines = run("explain", "weights/pickle").splitlines()
    assert lines[0] == "weights/pickle"
    text = words("\n".join(lines))
    for label, value in (("cause", PICKLE.cause), ("expected", PICKLE.expected), ("hint", PICKLE.hint)):
        assert f" {label} {value}" in text
    assert max(map(len, lines)) <= 80


def test_fields_that_a_message_fills_in_are_shown_as_such():
    assert "hint Download the folder again, or <fix>." in words(run("explain", "weights/missing-tensors"))
    assert "expected a file named in <index>" in words(run("explain", "weights/missing-shard"))
    assert "expected see the message" in words(run("explain", "model/config"))
    assert "{" not in run("explain", "run/damaged")


def test_as_json_templates_stay_as_they_are():
    found = json.loads(run("explain", "weights/missing-shard", "--json"))
    assert found == {
        "code": "weights/missing-shard", "cause": SHARD.cause, "expected": SHARD.expected, "hint": SHARD.hint,
    }  # fmt: skip
    listed = json.loads(run("explain", "--json"))
    assert [each["code"] for each in listed] == list(all_codes())
    assert found in listed


def test_without_a_code_all_are_listed_in_eighty_columns():
    lines = run("explain").splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    text = words("\n".join(lines))
    assert len(all_codes()) > 40
    for name, code in all_codes().items():
        assert f" {name} " in text
        assert set(code.cause.split()) <= set(text.split()), name


def test_markup_in_a_text_is_printed_not_obeyed(monkeypatch):
    odd = MISSING.__class__("odd/one", cause="A [red]list[/] of [a].", expected="{{x}}", hint="Use [b].")
    monkeypatch.setattr("lmmkit.commands.explain.all_codes", lambda: {odd.code: odd})
    text = words(run("explain", "odd/one"))
    assert "A [red]list[/] of [a]." in text and "expected {x}" in text and "Use [b]." in text
    assert "A [red]list[/] of [a]." in words(run("explain"))


@pytest.mark.parametrize(
    "typed", ["weights/mising-tensors", "weihgts/missing-tensors", "weight/missing-tensors"]
)
def test_an_unknown_code_is_refused_with_the_nearest(typed):
    text = run("explain", typed, code=2)
    assert "explain/unknown-code" in text and "Did you mean `weights/missing-tensors`?" in text


def test_a_code_unlike_any_other_is_answered_with_those_of_its_kind():
    text = run("explain", "log/xyzzy", code=2)
    assert "Known: log/cannot-write, log/no-step." in text and "weights/" not in text


def test_it_needs_no_torch():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from lmmkit.cli import app\n"
        "for words in ([], ['weights/missing-tensors'], ['--json']):\n"
        "    assert CliRunner().invoke(app, ['explain', *words]).exit_code == 0\n"
        "assert not {'torch', 'numpy', 'lmmkit.recipe'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_problems_are_printed_with_aligned_labels(capsys):
    two = MISMATCH.at("x.safetensors: [red]a[/]", got="first\nsecond\x1b[31m", shape=[2, 3])
    show(UserError([two, Problem("a/b", "here", "1", "2", "Take 2.")]))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "error x.safetensors: [red]a[/]",
        "  got       first",
        "            second?[31m",
        "  expected  shape [2, 3]",
        f"  hint      {MISMATCH.hint}  [model/tensor-mismatch]",
        "error here",
        "  got       1",
        "  expected  2",
        "  hint      Take 2.  [a/b]",
        "2 problems. More about a code: `lmmkit explain CODE`.",
    ]
