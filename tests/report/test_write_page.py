"""`lmmkit report`: where the page goes, and what is refused."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from lmmkit.cli import app
from lmmkit.errors import UserError
from lmmkit.report.write_page import write_page
from tests.support.ablation_file import write_ablation
from tests.support.run_folders import make_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"), scenes=4)


def test_a_page_is_written_and_replaced(pair, tmp_path):
    to = tmp_path / "new" / "page.html"
    first = write_page(pair, to)
    assert first.size == to.stat().st_size and to.read_bytes().startswith(b"<!doctype html>")
    assert write_page(pair[:1], to).size < first.size


@pytest.mark.parametrize("content", [b"", b"my notes"])
def test_another_file_is_not_replaced(pair, tmp_path, content):
    (tmp_path / "notes.txt").write_bytes(content)
    for place in (tmp_path / "notes.txt", tmp_path):
        with pytest.raises(UserError, match="report/out"):
            write_page(pair, place)
    assert (tmp_path / "notes.txt").read_bytes() == content


def test_a_grid_has_a_page_of_its_own(pair, tmp_path):
    (tmp_path / "ablation.json").write_text("{}")
    with pytest.raises(UserError, match="report/grid-and-runs"):
        write_page([tmp_path, pair[0]], tmp_path / "page.html")
    with pytest.raises(UserError, match="report/grid-and-runs"):
        write_page([tmp_path], tmp_path / "page.html", on="answers")


def test_the_command_prints_the_page_and_what_it_marks(pair, tmp_path):
    done = CliRunner().invoke(app, ["report", *map(str, pair), "--out", str(tmp_path / "r.html")])
    assert done.exit_code == 0 and "r.html: 0." in done.stdout and "marked" not in done.stdout
    (pair[0] / "plan.txt").unlink()
    done = CliRunner().invoke(app, ["report", *map(str, pair), "--out", str(tmp_path / "r.html")])
    assert done.exit_code == 0 and "marked on the page: plain has no plan" in done.stdout
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "s.html")])
    assert done.exit_code == 2 and "run/not-a-run" in done.stderr and not (tmp_path / "s.html").exists()


def test_the_file_of_a_grid_may_have_any_name(pair, tmp_path):
    copy = (write_ablation(tmp_path) / "ablation.json").rename(tmp_path / "tokens.json")
    assert write_page([copy], tmp_path / "page.html").size > 10_000
    for path in (pair[0] / "run.json", pair[0] / "metrics.jsonl"):
        with pytest.raises(UserError, match="run/not-a-run"):
            write_page([path], tmp_path / "page.html")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="run/not-a-run"):
        write_page([tmp_path / "list.json"], tmp_path / "page.html")
