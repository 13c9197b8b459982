"""Faults of plugins name instance, method, file and line in every phase; bugs of lmmkit keep their traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmmkit.errors import Problem, UserError
from lmmkit.evaluate.run import evaluate
from lmmkit.plan.dry_run.rehearsal import file_prepared
from lmmkit.plan.dry_run.run import plugin_problems
from lmmkit.registry import file_components
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.run import train
from tests.conftest import MODEL, REST
from tests.support import local_ranks

FILE = Path(__file__).resolve().parents[1] / "support" / "faulty_plugin.py"
OWNER = {"edit": "token", "forward": "token", "score": "echo", "text_puzzle": "echo"}  # of the others: faulty
STAGE = """
plugins:
  faulty: {{use: "{file}", fails: "{faulty}", gives: "{gives}"}}
  token: {{use: "{file}", fails: "{token}", gives: "{gives}"}}
  echo: {{use: "{file}", fails: "{echo}", gives: "{gives}"}}
stages:
  only:
    data:   {{captions: 1.0}}
    batch:  {{samples: 4}}
    length: {{steps: 1}}
    train:  {{connector: {{}}, plugins: {{}}}}
    optim:  {{lr: 1.0e-3}}
    losses: {{next_token: 1.0, faulty: 1.0, echo: 1.0}}
"""


@pytest.fixture
def recipe(tiny):
    """recipe(method, gives, *overrides) -> a recipe in which one method fails or returns something wrong."""

    def read(method: str = "", gives: str = "", *overrides: str):
        fails = dict.fromkeys(("faulty", "token", "echo"), "") | {OWNER.get(method, "faulty"): method}
        rest = REST.replace("images_every: 6", "images_every: 1").replace("stage: pretrain", "stage: only")
        return tiny(*overrides, text=MODEL + STAGE.format(file=FILE, gives=gives, **fails) + rest)

    return read


def problem(recipe, out: Path) -> Problem:
    """Returns the one problem of a run of this recipe."""
    with pytest.raises(UserError) as error:
        train(recipe, out=out, trust_files=True)
    (found,) = error.value.problems
    return found


def line_of(text: str) -> int:
    """Returns the first line of the plugin that contains `text`."""
    return 1 + next(i for i, line in enumerate(FILE.read_text().splitlines()) if text in line)


PLANNED = ("needs", "check", "chance", "edit")
IN_A_STEP = (
    "modules",
    "reset_parameters",
    "count",
    "views",
    "edit of an image",
    "value",
    "metrics",
    "images",
    "forward",
)


@pytest.mark.parametrize("method", PLANNED + IN_A_STEP)
def test_an_exception_names_the_plugin_and_its_line(method, recipe, tmp_path):
    found = problem(recipe(method), tmp_path / "run")
    raising = line_of('raise KeyError("a key")')
    assert found.code == "plugin/raised"
    assert found.where == f"{OWNER.get(method, 'faulty')}.{method}, faulty_plugin.py:{raising}"
    assert found.got == "KeyError: 'a key'"


@pytest.mark.parametrize(
    ("method", "gives", "got"),
    [
        ("needs", "none", "nothing (None)"),
        ("check", "none", "nothing (None)"),
        ("chance", "text", "'twelve'"),
        ("edit", "list", "a list with an int"),
        ("modules", "class", "the class Identity"),
        ("modules", "scalar", "a module whose parameter `0` has no dimension"),
        ("count", "number", "1.5"),
        ("views", "none", "nothing (None)"),
        ("views", "list", "a list with 1"),
        ("edit of an image", "vector", "a tensor [3] of float32"),
        ("value", "none", "nothing (None)"),
        ("value", "vector", "a tensor [3] of float32"),
        ("metrics", "mapping", "`a`: 1.5"),
        ("images", "tensor", "`a`: a tensor [3] of float32"),
        ("forward", "vector", "a tensor [3] of float32"),
    ],
)
def test_a_wrong_result_names_the_plugin_and_its_method(method, gives, got, recipe, tmp_path):
    found = problem(recipe(method, gives), tmp_path / "run")
    assert (found.code, found.got) == ("plugin/returned", got)
    where, _, place = found.where.partition(", ")
    assert where == f"{OWNER.get(method, 'faulty')}.{method}" and place.startswith("faulty_plugin.py:")


def test_the_line_of_a_wrong_result_is_that_of_its_method(recipe, tmp_path):
    found = problem(recipe("value", "none"), tmp_path / "run")
    assert found.where == f"faulty.value, faulty_plugin.py:{line_of('def value(self, ctx)')}"


def test_a_data_worker_reports_the_fault_of_a_plugin(recipe, tmp_path):
    found = problem(recipe("count", "", "speed.workers=1"), tmp_path / "run")
    assert (found.code, found.got) == ("plugin/raised", "KeyError: 'a key'")
    assert found.where.startswith("faulty.count, faulty_plugin.py:")


def test_a_fault_on_one_rank_is_reported_once_and_ends_all(recipe, tmp_path):
    read = recipe("value of rank 1")

    def body(rank):
        train(read, out=tmp_path / "run", trust_files=True)

    codes = local_ranks.wait(local_ranks.start(2, body, tmp_path))
    outputs = [local_ranks.output_of(tmp_path, rank) for rank in range(2)]
    assert codes == [2, 2], outputs
    assert "plugin/raised" in outputs[1] and "faulty.value, faulty_plugin.py:" in outputs[1]
    assert "plugin/raised" not in outputs[0] and not any("Traceback" in each for each in outputs)


@pytest.mark.parametrize(("gives", "code"), [("", "plugin/raised"), ("number", "plugin/returned")])
@pytest.mark.parametrize(
    ("method", "task"), [("score", "restore"), ("text_puzzle", "restore"), ("puzzles", "terms")]
)
def test_an_evaluation_reports_the_fault_of_a_plugin(method, task, gives, code, recipe, tmp_path):
    read = recipe(method, gives)
    train(read, out=tmp_path / "run", trust_files=True)
    with pytest.raises(UserError) as error:
        evaluate(RunFolder(tmp_path / "run"), read, only=[task], controls=[], trust_files=True)
    (found,) = error.value.problems
    owner = OWNER.get(method, "faulty")
    assert found.code == code and found.where.startswith(f"{owner}.{method}, faulty_plugin.py:")


def test_a_plugin_without_a_fault_trains(recipe, tmp_path):
    assert train(recipe(), out=tmp_path / "run", trust_files=True).signal is None


OLD = Path(__file__).resolve().parents[1] / "stored" / "plugin_api_1.py"


def test_a_plugin_of_an_older_api_is_refused_with_what_to_change(tmp_path):
    declared = OLD.read_text().replace("    text_loss", "    api: ClassVar[int] = 1\n    text_loss")
    (tmp_path / "old.py").write_text(declared)
    with pytest.raises(UserError) as error:
        file_components(tmp_path / "old.py", trust_files=True)
    (found,) = error.value.problems
    assert found.code == "plugin/api-version" and "`repeat` for API version 1" in found.got
    assert '`View(supervised=True)` is `View(supervision="train")`' in found.hint


def test_a_plugin_that_uses_an_old_name_gets_the_new_one_in_the_hint():
    (found,) = plugin_problems(file_prepared(str(OLD), trust_files=True))
    assert found.code == "plugin/raised" and found.where.startswith("repeat.views, plugin_api_1.py:")
    assert 'Since API 2: `View(supervised=True)` is `View(supervision="train")`.' in found.hint
