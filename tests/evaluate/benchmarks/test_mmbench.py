"""MMBench: tables with images in base64, rotations of 2, 3 and 4 options, the table for the server."""

from __future__ import annotations

import base64
import builtins
import csv
import time
from io import BytesIO
from random import Random

import pytest

from lmmkit.errors import MachineError
from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.benchmarks.mmbench import MMBench
from tests.support.benchmark_files import POINTER, figures_of, image_bytes, problems_of

BENCH = MMBench()
HEADER = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category", "comment", "split")  # fmt: skip
TABLE = "mmbench_dev_20230712.tsv"


def encoded(colour):
    return base64.b64encode(image_bytes(colour, "JPEG")).decode()


def rotations(index, options, gold=0, **changes):
    """Returns the rows of one question: the options turned by one place in each."""
    rows = []
    for turn in range(len(options)):
        turned = [*options[turn:], *options[:turn]]
        row = dict.fromkeys(HEADER, "") | {
            "index": str(index + turn * 1_000_000), "question": f"What is {index}?", "image": encoded(index % 256),
            "answer": "ABCD"[turned.index(options[gold])], "category": "colour", "l2-category": "perception", "split": "dev",
        }  # fmt: skip
        rows.append(row | dict(zip("ABCD", turned, strict=False)) | changes)
    return rows


def write(folder, rows, name=TABLE, header=HEADER):
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, header, delimiter="\t", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


def load(folder, split="dev"):
    return list(BENCH.items(folder, split=split, cache=folder / "cache"))


def made(i, options, gold="A", category="colour"):
    """Returns items of one question, whose right letter moves by one place in each rotation."""
    return [
        Item(
            id=str(i + turn * 1_000_000), prompt="?", cluster=str(i), groups={"category": category},
            gold={"letter": "ABCD"["ABCD".index(gold) - turn], "rotations": options},
        )
        for turn in range(options)
    ]  # fmt: skip


def test_items_have_llava_s_prompt_and_images_are_written_once(tmp_path):
    rows = rotations(241, ["red", "blue", 'a "dark"\nred'], hint="Look.") + rotations(7, ["yes", "no"])
    write(tmp_path, rows)
    items = load(tmp_path)
    assert [item.id for item in items] == ["241", "1000241", "2000241", "7", "1000007"]
    assert items[1].prompt == (
        'Look.\nWhat is 241?\nA. blue\nB. a "dark"\nred\nC. red\n'
        "Answer with the option's letter from the given choices directly."
    )
    assert (
        items[3].prompt
        == "What is 7?\nA. yes\nB. no\nAnswer with the option's letter from the given choices directly."
    )
    assert [item.gold["letter"] for item in items] == ["A", "C", "B", "A", "B"]
    assert [item.cluster for item in items] == ["241"] * 3 + ["7"] * 2
    assert items[0].groups == {"category": "colour", "l2-category": "perception"}
    files = sorted((tmp_path / "cache/mmbench").iterdir())
    assert (
        len(files) == 2
        and items[0].images == items[2].images
        and str(files[0]) in (items[0].images + items[3].images)
    )
    before = [path.stat().st_mtime_ns for path in files]
    assert load(tmp_path) == items and [path.stat().st_mtime_ns for path in files] == before


@pytest.mark.parametrize("cell", ["None", "NONE", "nan", "NA", "null", ""])
def test_options_end_at_the_first_that_pandas_or_llava_takes_for_empty(tmp_path, cell):
    rows = rotations(1, ["red", "blue", "green"], C=cell, D="grey")
    write(tmp_path, rows)
    assert "C." not in load(tmp_path)[0].prompt and "\nB. blue\nAnswer" in load(tmp_path)[0].prompt


def test_an_image_may_be_the_index_of_another_row(tmp_path):
    rows = rotations(5, ["x", "y"])
    rows[1]["image"] = "5"
    write(tmp_path, rows)
    first, second = load(tmp_path)
    assert first.images == second.images


@pytest.mark.parametrize(
    "name", ["mmbench_dev_20230712.tsv", "mmbench_dev_en_20231003.tsv", "MMBench_DEV_EN.tsv"]
)
def test_the_table_is_found_by_its_split(tmp_path, name):
    write(tmp_path, rotations(5, ["x", "y"]), name)
    write(tmp_path, rotations(6, ["x", "y"]), "mmbench_dev_cn_20231003.tsv")
    write(tmp_path, rotations(7, ["x", "y"]), "mmbench_test_20230712.tsv")
    assert {item.cluster for item in load(tmp_path)} == {"5"} and {
        item.cluster for item in load(tmp_path, "test")
    } == {"7"}
    write(tmp_path, rotations(8, ["x", "y"]), "mmbench_dev_copy.tsv")
    (problem,) = problems_of(lambda: load(tmp_path))
    assert problem.code == "benchmarks/no-file" and "mmbench_dev_copy.tsv" in problem.got


def test_a_question_counts_if_all_its_rotations_are_right():
    items = made(1, 2) + made(2, 3) + made(3, 4, category="size")
    right = [item.gold["letter"] for item in items]
    figures = figures_of(BENCH, items, right)
    assert (
        next(iter(figures)) == BENCH.headline and figures["circular"].value == figures["vanilla"].value == 1.0
    )
    assert figures["circular"].n == 3 and figures["circular/size"].n == 1
    assert figures["circular"].chance == 0.0 and figures["vanilla"].chance == 1.0, (
        "A is right without rotation only"
    )
    wrong = ["D" if item.id == "3000003" else letter for item, letter in zip(items, right, strict=True)]
    assert figures_of(BENCH, items, wrong)["circular"].value == pytest.approx(2 / 3)
    assert figures_of(BENCH, items, wrong)["vanilla"].value == 1.0
    dotted = [f"{letter}." for letter in right]
    assert figures_of(BENCH, items, dotted)["circular"].value == 0.0
    assert (
        figures_of(BENCH, items, dotted)["circular lenient"].value
        == figures_of(BENCH, items, dotted)["vanilla lenient"].value
        == 1.0
    )


def test_a_question_without_all_its_rotations_is_not_counted():
    items = made(1, 2) + made(2, 3)[:2]
    figures = figures_of(BENCH, items, [item.gold["letter"] for item in items])
    assert figures["circular"].n == 1 and figures["vanilla"].n == 2


def by_a_dictionary(items, answers):
    """Returns circular and vanilla accuracy from the table of answers, question by question."""
    given = {item.id: answer == item.gold["letter"] for item, answer in zip(items, answers, strict=True)}
    bases = [item for item in items if int(item.id) < 1_000_000]
    circular = 0
    for base in bases:
        k = 0
        while str(int(base.id) + k * 1_000_000) in given and given[str(int(base.id) + k * 1_000_000)]:
            k += 1
        circular += str(int(base.id) + k * 1_000_000) not in given
    return circular / len(bases), sum(given[base.id] for base in bases) / len(bases)


def test_ten_thousand_random_answers_score_as_question_by_question():
    rng = Random(2)
    items = [item for i in range(3_400) for item in made(i, rng.randint(2, 4), rng.choice("AB"))]
    rng.shuffle(items)
    answers = [item.gold["letter"] if rng.random() < 0.8 else rng.choice("ABCDE") for item in items]
    assert len(items) > 10_000
    figures = figures_of(BENCH, items, answers)
    circular, vanilla = by_a_dictionary(items, answers)
    assert figures["circular"].value == pytest.approx(circular, abs=1e-12) and 0.4 < circular < 0.8
    assert figures["vanilla"].value == pytest.approx(vanilla, abs=1e-12)


def test_the_test_split_waits_for_the_server(tmp_path):
    header = [name for name in HEADER if name != "answer"]
    write(tmp_path, rotations(5, ["x", "y"], split="test"), "mmbench_test_20230712.tsv", header)
    items = load(tmp_path, "test")
    assert BENCH.status(items) == "pending-server" and figures_of(BENCH, items, ["A", "B"]) == {}
    assert BENCH.verdict(items[0], "A").score is None
    sheet = opened(BENCH.upload(items, {"5": "A", "1000005": "B"}))
    assert sheet[0] == ("index", "question", "A", "B", "C", "D", "prediction", "split")


def opened(files):
    from openpyxl import load_workbook

    (data,) = files.values()
    return [tuple(cell.value for cell in row) for row in load_workbook(BytesIO(data)).active.rows]


def test_the_server_s_table_has_the_official_columns(tmp_path):
    write(tmp_path, rotations(5, ["=1+1", "2"], gold=1))
    items = load(tmp_path)
    sheet = opened(BENCH.upload(items, {"5": "=B", "1000005": "A"}))
    assert sheet == [
        ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split"),
        (5, "What is 5?", "=1+1", "2", None, None, "=B", "B", "dev"),
        (1_000_005, "What is 5?", "2", "=1+1", None, None, "A", "A", "dev"),
    ]
    problems = problems_of(lambda: BENCH.upload(items, {"5": "A", "9": "A"}))
    assert [p.code for p in problems] == ["benchmarks/upload-answers"] * 2


def test_an_answer_that_no_cell_holds_is_made_to_fit(tmp_path):
    write(tmp_path, rotations(5, ["x", "y"]))
    sheet = opened(BENCH.upload(load(tmp_path), {"5": "A\x00\x1b\nB", "1000005": "A" * 40_000}))
    assert sheet[1][6] == "A  \nB" and sheet[2][6] == "A" * 32_767


def test_a_formula_is_stored_as_text(tmp_path):
    from openpyxl import load_workbook

    write(tmp_path, rotations(5, ["x", "y"]))
    (data,) = BENCH.upload(load(tmp_path), {"5": "=A1", "1000005": "A"}).values()
    assert load_workbook(BytesIO(data)).active["G2"].data_type == "s"


def test_without_openpyxl_the_extra_is_named(tmp_path, monkeypatch):
    write(tmp_path, rotations(5, ["x", "y"]))
    items = load(tmp_path)
    imports = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "openpyxl":
            raise ImportError(name)
        return imports(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MachineError) as caught:
        BENCH.upload(items, {"5": "A", "1000005": "A"})
    assert caught.value.problems[0].code == "benchmarks/not-installed"


def test_all_that_is_wrong_is_reported_at_once(tmp_path):
    rows = [
        *rotations(1, ["x", "y", "z"])[:2],  # a rotation is missing
        *rotations(2, ["x", "y"]), rotations(2, ["x", "y"])[0],  # an index twice
        *rotations(3, ["x", "y"], answer="E"),
        *rotations(4, ["x", "y"], image="AAAA"),
        *rotations(5, ["x", "y"], image="A"),
        {**rotations(6, ["x", "y"])[0], "index": "9" * 5_000},
    ]  # fmt: skip
    write(tmp_path, rows)
    codes = [p.code for p in problems_of(lambda: load(tmp_path))]
    assert sorted(codes) == [
        "benchmarks/duplicate-id", "benchmarks/no-images", "benchmarks/no-images", "benchmarks/other-version",
        "benchmarks/record", "benchmarks/record", "benchmarks/record",
    ]  # fmt: skip


def test_files_that_are_no_tables_are_refused(tmp_path):
    for content, code in (
        (POINTER, "lfs-pointer"), (b"index\tquestion\n1\t2\n", "record"), (b"\xff\xfe", "not-json"),
        ("\t".join(HEADER).encode() + b"\n1\t2\n", "record"), (b'"a\tb', "record"),
    ):  # fmt: skip
        (tmp_path / TABLE).write_bytes(content)
        assert [p.code for p in problems_of(lambda: load(tmp_path))] == [f"benchmarks/{code}"]


def test_a_large_table_is_read_in_seconds(tmp_path):
    """Cells are longer than the limit of `csv`, which is the same again afterwards."""
    limit = csv.field_size_limit()
    image = base64.b64encode(image_bytes() + bytes(150_000)).decode()
    write(tmp_path, [row for i in range(100) for row in rotations(i, ["x", "y"], image=image)])
    start = time.perf_counter()
    assert len(load(tmp_path)) == 200 and csv.field_size_limit() == limit
    assert time.perf_counter() - start < 10
