"""Every error code is produced somewhere, and what is said is whole: place, found, wanted, mend."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.trust import samples
from tests.trust.codes import codes
from tests.trust.home import make_base
from tests.trust.table import text

TESTS = Path(__file__).resolve().parent.parent
OURS = ("codes.py", "test_codes.py")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def produced(base, tmp_path_factory):
    """Every problem of all samples, by code."""
    found = {}
    for sample in samples.SAMPLES:
        with samples.collected() as told:
            sample(samples.home_for(sample, tmp_path_factory.mktemp("sample"), base))
        for problem in told:
            found.setdefault(problem.code, []).append(problem)
    return found


def test_every_code_can_be_found_in_the_source():
    found, unknown = codes()
    assert not unknown, "give the code as a literal, or name the helper in codes.py"
    assert len(found) > 150 and all(code.count("/") == 1 for code in found)


def test_every_code_is_produced_by_a_sample_or_named_in_a_test(produced):
    found, _ = codes()
    assert not set(produced) - set(found), "codes that the source does not show"
    named = "\n".join(path.read_text() for path in TESTS.rglob("*.py") if path.name not in OURS)
    missing = {code: file for code, file in found.items() if code not in produced and code not in named}
    assert not missing, "add a sample to tests/trust/samples.py, or a test that names the code"
    assert len(produced) > 80


def test_what_is_said_is_whole(produced):
    for problem in (p for several in produced.values() for p in several):
        assert all(
            (problem.where.strip(), problem.got.strip(), problem.expected.strip(), problem.hint.strip())
        ), problem
        assert "\n" not in problem.where and len(problem.got) < 2000, problem
        assert problem.hint[-1] in ".?`)}", problem


# A recipe or an order made in Python has no file; arguments are called as the command's help calls them.
PLACELESS = {
    "recipe/wrong-type", "data/no-source", "recipes/unknown", "chat/control", "order/empty", "order/source", "order/weight",
    "model/vocab", "speak/tokens",
}  # fmt: skip


def test_a_place_names_a_file_an_option_or_a_sample(produced):
    marks = ("/", ".yaml", ".json", "--", "sample ", "step ")
    bare = {
        p.code for several in produced.values() for p in several if not any(mark in p.where for mark in marks)
    }  # fmt: skip
    assert not bare - PLACELESS


def test_the_table_of_codes_is_up_to_date():
    path = TESTS.parent / "docs" / "errors.md"
    if os.environ.get("LMMKIT_WRITE_ERRORS"):
        path.write_text(text())
    assert path.read_text() == text(), "LMMKIT_WRITE_ERRORS=1 pytest tests/trust/test_codes.py writes it anew"
