"""Tables at 60, 80 and 120 columns: those of every command fit, and no word or number is broken or left out."""

from __future__ import annotations

import ast
import copy
import io
import shutil
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from lmmkit.commands import evaluate
from lmmkit.commands.support import common
from lmmkit.commands.support.table_layout import fitted
from lmmkit.evaluate.answers.published import COLUMNS
from lmmkit.evaluate.benchmarks.names import BENCHMARKS
from lmmkit.evaluate.task import Figure
from lmmkit.recipe import read_text
from lmmkit.report.quickstart import summarise, tables
from lmmkit.training.run import train
from tests.conftest import DIRECT
from tests.support.toy_benchmark import Toy, write_toy
from tests.test_cli import run

WIDTHS = (60, 80, 120)
COMMANDS = Path(common.__file__).parent.parent
FIGURES = {"accuracy": Figure(value=0.7612, low=0.7401, high=0.7823, chance=0.25, n=1500)}


def shown(table: Table, width: int) -> str:
    """Returns a table as a terminal of this width shows it."""
    console = Console(file=io.StringIO(), width=width, soft_wrap=True, markup=False, highlight=False)
    console.print(fitted(copy.deepcopy(table), width))
    return console.file.getvalue()


def words(text: str) -> list[str]:
    return "".join(" " if "─" <= c <= "╿" else c for c in text).split()


def cells(table: Table) -> list[str]:
    """Returns the words of all cells."""
    return [word for column in table.columns for cell in column.cells for word in words(str(cell))]


def require_whole(table: Table, width: int) -> None:
    """Fails unless the table fits and shows every word of its cells, a word that is longer than a line in pieces."""
    text = shown(table, width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text, text
    short = [word for word in cells(table) if len(word) < width // 2]
    assert not Counter(short) - Counter(words(text)), text
    letters = Counter("".join(words(text)))
    assert not Counter("".join(cells(table))) - letters, text


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    """Trains a run, and evaluates it."""
    steps = [f"stages.{stage}.length.steps=2" for stage in ("pretrain", "finetune")]
    recipe = read_text(DIRECT, name="tiny.yaml", overrides=[*steps, "output.save_every=1"], root=scenes)
    folder = train(recipe, out=tmp_path_factory.mktemp("tables") / "run").run.path
    run("eval", folder)
    return folder


@pytest.fixture(scope="module")
def twin(trained):
    """Copies the run: a comparison needs two."""
    return shutil.copytree(trained, trained.parent / "copy", symlinks=True)


@pytest.fixture
def printed(monkeypatch):
    """Collects the tables that commands print."""
    found: list[Table] = []

    def kept(table, width):
        found.append(copy.deepcopy(table))
        return fitted(table, width)

    monkeypatch.setattr(common, "fitted", kept)
    return found


@pytest.fixture
def files(monkeypatch, tmp_path):
    """Writes the files of a benchmark, and another program's answers."""
    monkeypatch.setitem(BENCHMARKS, "toy", Toy)
    (tmp_path / "x.png").write_bytes(b"image")
    write_toy(tmp_path / "files" / "toy", [tmp_path / "x.png"])
    (tmp_path / "a.jsonl").write_text('{"question_id": "q0-0", "text": "a"}\n')
    return tmp_path


def quickstart_tables(trained, folder):
    """Prints the tables of a quickstart of two equal recipes."""
    for name in ("llava", "direct"):
        (folder / name).symlink_to(trained)
    for table in tables(folder, summarise(folder, ["llava", "direct"], wall_seconds=1.0)):
        common.print_table(table)


def published_tables():
    """Prints the published figures of every benchmark."""
    for name in COLUMNS:
        evaluate.print_published(name, BENCHMARKS[name](), FIGURES, "my-model-with-a-long-name")


# (module, function that prints a table) -> the words of a command, or a function
PRINTED = {
    ("answers/group", "compare"): ["answers", "compare", "{run}", "{copy}"],
    ("answers/group", "judge"): None,  # the table that `score` prints
    ("answers/group", "score"): [
        "answers", "score", "toy", "--files", "{files}/files", "--answers", "{files}/a.jsonl"
    ],
    ("bench", "backends"): ["bench", "backends"],
    ("bench", "kernels"): ["bench", "kernels", "{run}/recipe.resolved.yaml", "--root", "{scenes}"],
    ("check", "check"): ["check", "{run}/recipe.resolved.yaml", "--root", "{scenes}"],
    ("ckpt", "_print"): ["ckpt", "verify", "{run}"],
    ("data", "stats"): ["data", "stats", "{run}/recipe.resolved.yaml", "--root", "{scenes}"],
    ("diff", "diff"): ["diff", "{run}", "llava-1.5-7b"],
    ("env", "_print"): ["env"],
    ("evaluate", "show_results"): ["eval", "{run}", "--out", "{files}/out"],
    ("evaluate", "print_published"): published_tables,
    ("experiments/runs", "_print_pair"): ["runs", "--compare", "{run}", "{copy}"],
    ("experiments/runs", "show_runs"): ["runs", "{run}"],
    ("experiments/ablate", "_print_outcome"): None,  # tables of 80 columns: tests/ablation/test_table.py
    ("experiments/ablate", "ablate"): None,  # the same
    ("explain", "explain"): ["explain"],
    ("model", "show"): ["model", "show", "{run}"],
    ("plugins", "cost_"): ["plugins", "cost", "{run}/recipe.resolved.yaml", "--root", "{scenes}", "--rounds", "1"],
    ("plugins", "list_"): ["plugins", "list"],
    ("quickstart", "finish"): quickstart_tables,
}  # fmt: skip


@pytest.mark.parametrize("place", [place for place, words in PRINTED.items() if words is not None])
def test_the_tables_of_every_command_fit(place, trained, twin, scenes, files, printed):
    asked = PRINTED[place]
    if asked is quickstart_tables:
        quickstart_tables(trained, files)
    elif asked is published_tables:
        published_tables()
    else:
        run(*(word.format(run=trained, copy=twin, scenes=scenes, files=files) for word in asked))
    assert printed
    for table in printed:
        for width in WIDTHS:
            require_whole(table, width)


def test_no_command_that_prints_a_table_is_forgotten():
    found = set()
    for path in COMMANDS.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                names = {node.func.id for node in ast.walk(function)
                         if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
                if "print_table" in names:
                    found.add((path.relative_to(COMMANDS).with_suffix("").as_posix(), function.name))
    assert found == PRINTED.keys()


@pytest.mark.parametrize("code", ["plan/no-view", "weights/missing-tensors"])
def test_the_explanation_of_a_code_fits(code, printed):
    run("explain", code)
    (table,) = printed
    for width in WIDTHS:
        require_whole(table, width)


def wide(columns: int, word: str = "12,345.6") -> Table:
    table = Table(title="a title", title_justify="left")
    for number in range(columns):
        table.add_column(f"heading\n{number}", justify="right" if number else "left")
    for name in ("first", "second and more words"):
        table.add_row(name, *[word] * (columns - 1))
    return table


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("columns", [1, 2, 6, 9, 14, 30])
def test_any_number_of_columns_fits(columns, width):
    require_whole(wide(columns), width)


def test_a_table_that_is_too_wide_first_loses_its_lines_then_becomes_lists():
    assert "┃" in shown(wide(5), 80)
    without = shown(wide(8), 80)
    assert "┃" not in without and len(without.splitlines()) == 6, without
    lists = shown(wide(14), 80).splitlines()
    assert lists[1].split() == ["heading", "0", "first"] and len(lists) == 1 + 2 * 14 + 1


def test_a_word_that_is_longer_than_a_line_is_broken_and_not_lost():
    require_whole(wide(3, word="/a/long/path/" + "x" * 200), 60)
