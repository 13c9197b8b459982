"""`lmmkit data stats`: its figures against a plain count and against what the pipeline drops; bad records; samples."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image as Pil
from rich.console import Console

from lmmkit.commands.support import data_stats
from lmmkit.commands.support.data_stats import chosen_records, measure_data, quantiles
from lmmkit.commands.support.stats_tables import stats_tables
from lmmkit.commands.support.table_layout import fitted
from lmmkit.data.sources import indexed_records
from lmmkit.errors import UserError
from lmmkit.plan.prepare import prepare
from tests.conftest import PLAIN
from tests.test_cli import run

CONTEXT = 54  # cuts all records of `questions`, and some of them before the first answer


@pytest.fixture(scope="module")
def cut(scenes):
    """Returns a recipe with a short context, what `measure_data` finds of it, and its pipeline of stage finetune."""
    from lmmkit.recipe import read_text

    sets = [f"model.text.context={CONTEXT}", "stages.finetune.batch.too_long=truncate"]
    recipe = read_text(PLAIN, name="tiny.yaml", overrides=sets, root=scenes)
    found = measure_data(recipe, ["questions", "captions"])
    return recipe, found, prepare(recipe, data=["questions"])


def test_turns_and_images_are_those_of_the_files(scenes, cut):
    found = cut[1]["sources"]["questions"]
    rows = json.loads((scenes / "finetune.json").read_text())
    sizes = [Pil.open(scenes / row["image"]).size for row in rows]
    turns = sorted(len(row["conversations"]) for row in rows)
    assert found["records"] == found["measured"] == len(rows) and found["bad_records"] == 0
    assert found["turns"]["total"] == sum(turns) and found["turns"]["max"] == turns[-1]
    assert found["turns"]["median"] == turns[(len(turns) - 1) // 2]
    assert found["images"]["total"] == found["width"]["count"] == len(rows) and not found["without_images"]
    assert found["width"]["total"] == sum(width for width, _ in sizes)
    assert found["height"]["min"] == min(height for _, height in sizes)
    assert (found["template"], found["image_fit"]) == ("vicuna_v1", "pad")


def test_rows_and_cuts_are_those_of_the_pipeline(cut):
    """Compares with the views that training lays out, one by one."""
    _, found, prepared = cut
    views, records = prepared.views("finetune"), prepared.sources["questions"]
    dropped, rows, supervised, kept, learned = Counter(), [], 0, 0, 0
    for sample in records:
        (whole,) = [views.lay_out(view) for view in views.of(sample, 0)]
        rows.append(sum(span.n for span in whole))
        supervised += sum(span.n for span in whole if span.supervised)
        for member in views.fitting(sample, 0, dropped):
            kept += sum(span.n for span in member.layout)
            learned += sum(span.n for span in member.layout if span.supervised)
    mine = found["sources"]["questions"]
    assert mine["rows"]["total"] == sum(rows) and mine["rows"]["p95"] == sorted(rows)[-(len(rows) // 20) - 1]
    assert mine["supervised_rows"]["total"] == supervised
    assert mine["supervised_share"] == pytest.approx(supervised / sum(rows))
    long = mine["too_long"]
    assert long["records"] == dropped["truncated"] > 0 and long["nothing_left"] == dropped["no_target"] > 0
    assert long["supervised_rows_cut"] == supervised - learned
    assert long["rows_cut"] == sum(max(0, n - CONTEXT) for n in rows)
    assert kept == sum(rows) - long["rows_cut"] - CONTEXT * long["nothing_left"]
    assert found["too_long"] == {"pretrain": "error", "finetune": "truncate"}


def test_all_is_the_sum_of_the_sources(cut):
    found = cut[1]
    whole, parts = found["all"], found["sources"].values()
    for key in ("records", "measured", "bad_records", "without_images"):
        assert whole[key] == sum(part[key] for part in parts)
    for key in ("turns", "rows", "height"):
        assert whole[key]["total"] == sum(part[key]["total"] for part in parts)
        assert whole[key]["max"] == max(part[key]["max"] for part in parts)
    assert whole["too_long"]["records"] == sum(part["too_long"]["records"] for part in parts)


@pytest.mark.parametrize("width", [80, 60])
def test_tables_fit_the_terminal(cut, width):
    found = json.loads(json.dumps(cut[1]))
    found["sources"]["a_source_with_a_name_that_is_long"] = found["sources"]["questions"]
    found["all"]["reasons"] = found["sources"]["questions"]["reasons"] = {
        "records/no-question": {"records": 12, "first": "a/long/path/of/a/file.json:12345 (record 12344)"}
    }
    shown = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in stats_tables(found):
        shown.print(fitted(table, width))
    text = shown.export_text()
    assert max(map(len, text.splitlines())) <= width
    for word in ("records", "supervised", "vicuna_v1", "pad", "12", "file.json", "too_long", "truncate"):
        assert word in text, word


@pytest.fixture
def damaged(scenes, tmp_path):
    """Returns the options of `data stats` for captions of which five records of 40 are bad."""
    rows = json.loads((scenes / "pretrain.json").read_text())[:40]
    shutil.copytree(scenes / "images", tmp_path / "images")
    rows[3]["conversations"] = []
    rows[4]["conversations"][1]["value"] = ""
    (tmp_path / "images" / "train" / "sham.png").write_bytes(b"no image")
    rows[7]["image"] = "images/train/sham.png"
    for number in (8, 9):
        rows[number]["image"] = f"images/train/absent-{number}.png"
    (tmp_path / "bad.json").write_text(json.dumps(rows))
    (tmp_path / "mine.yaml").write_text(PLAIN)
    sets = [f"data.captions.records={tmp_path / 'bad.json'}", f"data.captions.images={tmp_path}"]
    return [tmp_path / "mine.yaml", "--root", scenes, *(word for each in sets for word in ("--set", each))]


def test_bad_records_are_counted_with_their_reasons(damaged):
    found = json.loads(run("data", "stats", *damaged, "captions", "--json"))["sources"]["captions"]
    assert (found["records"], found["bad_records"], found["measured"]) == (40, 5, 35)
    reasons = {code: each["records"] for code, each in found["reasons"].items()}
    assert reasons.pop("image/file") == 2 and reasons.pop("image/format") == 1
    assert sum(reasons.values()) == 2 and all(code.startswith("records/") for code in reasons)
    assert "record 8" in found["reasons"]["image/file"]["first"]
    text = run("data", "stats", *damaged, "captions")
    assert "bad records" in text and "image/format" in text and "(record 7)" in text


def test_reasons_that_the_index_does_not_store_are_counted(damaged, monkeypatch):
    monkeypatch.setattr(indexed_records, "BAD_KEPT", 1)
    found = json.loads(run("data", "stats", *damaged, "captions", "--json"))["sources"]["captions"]
    assert found["bad_records"] == 5 and found["reasons"]["more"]["records"] == 1
    assert sum(each["records"] for each in found["reasons"].values()) == 5


def test_a_sample_is_stated_and_a_function_of_the_seed(damaged):
    text = run("data", "stats", *damaged, "captions", "--sample", 10)
    assert "10 records, chosen at random (seed 5), in captions" in text
    assert "at random" not in run("data", "stats", *damaged, "captions", "--sample", 40)
    found = [
        json.loads(run("data", "stats", *damaged, "captions", "--sample", 10, "--json")) for _ in range(2)
    ]
    assert found[0] == found[1] and found[0]["sample"] == 10
    assert found[0]["sources"]["captions"]["records"] == 40
    numbers = chosen_records(1000, 50, 3)
    assert len(set(numbers)) == 50 and list(numbers) == sorted(numbers) != list(chosen_records(1000, 50, 4))
    assert list(chosen_records(5, 9, 0)) == [0, 1, 2, 3, 4]


def test_problems_of_all_files_come_together(damaged):
    sets = ["data.captions.records=none.json", "data.questions.records=no.json"]
    text = run("data", "stats", *damaged, *(word for each in sets for word in ("--set", each)), code=2)
    assert "none.json" in text and "no.json" in text and "2 problems" in text
    assert "data/unknown-source" in run("data", "stats", *damaged, "captoins", code=2)


def test_a_file_that_changes_while_it_is_measured_ends_the_command(tiny, monkeypatch):
    opened = data_stats._opened

    def then_changed(recipe, names):
        found = opened(recipe, names)
        found["captions"].indexed.index.meta["stat"][0] = [0, 0]
        return found

    monkeypatch.setattr(data_stats, "_opened", then_changed)
    with pytest.raises(UserError, match="records/changed"):
        measure_data(tiny(text=PLAIN), ["captions"])


def test_quantiles_are_values_that_occur():
    values = [7, 1, 3, 3, 900]
    found = quantiles(values)
    assert found == {"count": 5, "total": 914, "min": 1, "median": 3, "p95": 900, "max": 900}
    assert quantiles([]) == {"count": 0, "total": 0, "min": None, "median": None, "p95": None, "max": None}
    many = np.random.default_rng(0).integers(0, 50, 1000)
    assert quantiles(many)["p95"] == np.sort(many)[949]
