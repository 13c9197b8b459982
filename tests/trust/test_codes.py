"""Every error code is used and tested, and every message is complete; docs/errors.md lists them all."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lmmkit.errors import AREAS, SHOWN, all_codes, did_you_mean
from tests.support.hostile_home import make_base
from tests.trust import samples

TESTS = Path(__file__).resolve().parent.parent
PACKAGE = TESTS.parent / "lmmkit"
HEAD = """# Error codes

Every message ends with a code, and `lmmkit explain CODE` prints the line of this table. A command prints all problems at
once. Its exit code is 2 if the input is wrong, and 3 if the machine is. A message has values in the place of `{...}`.
`LMMKIT_WRITE_ERRORS=1 pytest tests/trust/test_codes.py` rewrites this page from `lmmkit/errors/`.

| code | cause | expected | hint |
|---|---|---|---|
"""


def page() -> str:
    """Returns docs/errors.md."""
    rows = (f"| `{c.code}` | {c.cause} | {c.expected} | {c.hint} |\n" for c in all_codes().values())
    return HEAD + "".join(row.replace("{{", "{").replace("}}", "}") for row in rows)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def produced(base, tmp_path_factory):
    """Returns every problem of all samples, by code."""
    found = {}
    for sample in samples.SAMPLES:
        with samples.collected() as problems:
            sample(samples.home_for(sample, tmp_path_factory.mktemp("sample"), base))
        for problem in problems:
            found.setdefault(problem.code, []).append(problem)
    return found


def test_every_code_is_used():
    files = (path.read_text() for path in PACKAGE.rglob("*.py") if path.parent.name != "errors")
    used = {name for text in files for name in re.findall(r"\b[A-Z_]+\b", text)}
    constants = [
        name
        for area in AREAS
        for name in re.findall(r"^([A-Z_]+) = Code", (PACKAGE / f"errors/{area}.py").read_text(), re.M)
    ]
    assert len(constants) == len(all_codes()) > 150
    assert not set(constants) - used


def test_every_code_is_produced_by_a_sample_or_named_in_a_test(produced):
    assert not set(produced) - set(all_codes()), "codes without a Code"
    named = "\n".join(path.read_text() for path in TESTS.rglob("*.py"))
    missing = [code for code in all_codes() if code not in produced and code not in named]
    assert not missing, "add a sample to tests/trust/samples.py, or a test that names the code"
    assert len(produced) > 80


def test_every_message_is_complete(produced):
    for problem in (p for several in produced.values() for p in several):
        assert all(
            (problem.where.strip(), problem.got.strip(), problem.expected.strip(), problem.hint.strip())
        ), problem
        assert "\n" not in problem.where and len(problem.got) < 2000, problem
        assert problem.hint[-1] in ".?`)}", problem


# A recipe or a sampler made in Python has no file; arguments have the names of the command's help.
WITHOUT_FILE = {
    "recipe/wrong-type", "data/unknown-source", "recipes/unknown-recipe", "chat/control-tokens", "model/vocab",
    "sampler/empty-source", "sampler/unknown-source", "sampler/weights", "chat/learned-tokens",
}  # fmt: skip


def test_where_names_a_file_an_option_or_a_sample(produced):
    marks = ("/", ".yaml", ".json", "--", "sample ", "step ")
    bare = {
        p.code for several in produced.values() for p in several if not any(mark in p.where for mark in marks)
    }  # fmt: skip
    assert not bare - WITHOUT_FILE


def test_a_hint_names_the_nearest_name_or_lists_a_few():
    assert did_you_mean("text_ordr", ["image_order", "text_order"]) == "Did you mean `text_order`?"
    assert did_you_mean("zzz", ["b", "a", "b"]) == "Known: a, b."
    assert did_you_mean("zzz", []) == "There are no such names."
    names = [f"name_{i:03d}" for i in range(100)]
    hint = did_you_mean("zzz", names)
    assert hint.count("name_") == SHOWN and hint.endswith(f" and {100 - SHOWN} more.")
    assert "xxz" in did_you_mean("zzzzzz", [*names, "xxz"]), "the nearest ones are shown"


def test_the_page_of_codes_is_up_to_date():
    path = TESTS.parent / "docs" / "errors.md"
    if os.environ.get("LMMKIT_WRITE_ERRORS"):
        path.write_text(page())
    assert path.read_text() == page()
