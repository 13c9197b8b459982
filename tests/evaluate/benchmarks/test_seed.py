"""SEED-Bench: both question sets, exact letters, one id of two questions."""

from __future__ import annotations

import json
from random import Random

import pytest

from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.benchmarks.seed import SeedBench
from tests.support.benchmark_files import POINTER, figures_of, problems_of, write_images

SEED = SeedBench()
TYPES = {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10}


def question(id_, **changes):
    row = {
        "answer": "A", "choice_a": "1", "choice_b": "2", "choice_c": "3", "choice_d": "4", "data_id": f"{id_}_7",
        "data_type": "image", "question": "How many dogs?", "question_id": id_, "question_type_id": 5,
    }  # fmt: skip
    return row | changes


def video(id_, **changes):
    return question(id_, **{"data_type": "video", "question_type_id": 10, "data_id": f"{id_}.mp4"} | changes)


def write(folder, rows, images=True):
    (folder / "SEED-Bench.json").write_text(json.dumps({"questions": rows, "question_type": TYPES}))
    for row in rows if images else ():
        if row["data_type"] == "image":
            write_images(folder / "SEED-Bench-image", [str(row["data_id"])])
        else:
            write_images(
                folder / "SEED-Bench-video-image", [f"{row['question_type_id']}_{row['question_id']}.png"]
            )


def load(folder, split="all"):
    return list(SEED.items(folder, split=split, cache=folder / "cache"))


def item(i, gold, kind="image", dimension="Scene Understanding"):
    groups = {"questions": "unknown question set (9 questions)", "data": kind, "dimension": dimension}
    return Item(
        id=str(i), prompt="?", gold=gold, cluster=str(i // 2), groups=groups, columns={"question_id": str(i)}
    )


def test_items_have_llava_s_prompt_and_files(tmp_path):
    write(tmp_path, [question("101669", answer="C"), video("v12"), question(7)])
    first, frame, number = load(tmp_path)
    assert first.id == "101669" and first.gold == "C" and first.cluster == "101669_7"
    assert first.prompt == (
        "How many dogs?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer with the option's letter from the given choices directly."
    )
    assert first.images == (str(tmp_path / "SEED-Bench-image/101669_7"),)
    assert frame.images == (str(tmp_path / "SEED-Bench-video-image/10_v12.png"),)
    assert first.groups == {
        "questions": "unknown question set (3 questions)", "data": "image", "dimension": "Instances Counting",
    }  # fmt: skip
    assert number.id == "7", "ids may be numbers"
    assert [i.id for i in load(tmp_path, "video")] == ["v12"] and [i.id for i in load(tmp_path, "image")] == [
        "101669",
        "7",
    ]
    assert SEED.status([first]) == "scored"


@pytest.mark.parametrize(
    ("videos", "name"), [(5009, "first question set (19,242"), (3757, "screened question set (17,990")]
)
def test_both_question_sets_are_named_by_their_counts(tmp_path, videos, name):
    rows = [question(str(i)) for i in range(14_233)] + [video(f"v{i}") for i in range(videos)]
    write(tmp_path, rows, images=False)
    folder = tmp_path / "SEED-Bench-video-image"
    folder.mkdir()
    for i in range(videos):
        (folder / f"10_v{i}.png").touch()
    items = load(tmp_path, "video")
    assert len(items) == videos
    figures = figures_of(SEED, items, ["A"] * videos)
    (named,) = (key for key in figures if name in key)
    assert figures[named].n == videos and figures[named].value == figures["accuracy"].value == 1.0


def test_one_id_of_the_official_file_has_two_questions(tmp_path):
    rows = [question("49914", data_id="a"), question("49914", data_id="b", answer="B"), question("5")]
    write(tmp_path, rows)
    items = load(tmp_path)
    assert [i.id for i in items] == ["49914", "49914#2", "5"]
    upload = SEED.upload(items, {"49914": "A", "49914#2": "B", "5": "C"})["seed.jsonl"].decode()
    assert [json.loads(line) for line in upload.splitlines()] == [
        {"question_id": "49914", "prediction": "A"},
        {"question_id": "49914", "prediction": "B"},
        {"question_id": "5", "prediction": "C"},
    ]
    write(tmp_path, [*rows, question("5", data_id="c"), question("49914", data_id="c")])
    assert [p.code for p in problems_of(lambda: load(tmp_path))] == ["benchmarks/duplicate-id"] * 2


@pytest.mark.parametrize(
    ("answer", "score", "lenient"),
    [("B", 1, 1), ("B.", 0, 1), ("B. blue", 0, 1), ("b", 0, 1), ("", 0, 0), ("A", 0, 0), ("B ", 0, 1), ("blue", 0, 0)],
)  # fmt: skip
def test_the_official_score_needs_exactly_the_letter(answer, score, lenient):
    verdict = SEED.verdict(item(0, "B"), answer)
    assert (verdict.score, verdict.lenient) == (score, lenient)
    assert verdict.parsed == (answer if answer in ("A", "B") else None) and not verdict.fallback


def test_the_reference_is_the_best_letter_of_the_data():
    items = [item(i, gold) for i, gold in enumerate("AABBBC")]
    figures = figures_of(SEED, items, list("AABBBC"))
    assert next(iter(figures)) == SEED.headline == "accuracy"
    assert (
        figures["accuracy"].chance == 0.5 and figures["accuracy"].value == 1.0 and figures["accuracy"].n == 6
    )


def by_the_official_script(items, answers):
    """Returns the accuracies as the official script computes them: from counts of each dimension."""
    found = {}
    for wanted in (None, "image", "video"):
        total, right = {}, {}
        for one, answer in zip(items, answers, strict=True):
            if wanted in (None, one.groups["data"]):
                dimension = one.groups["dimension"]
                total[dimension] = total.get(dimension, 0) + 1
                right[dimension] = right.get(dimension, 0) + (1 if answer == one.gold else 0)
        name = "accuracy" if wanted is None else f"accuracy/{wanted}"
        found[name] = sum(right.values()) / sum(total.values())
        if wanted is None:
            found |= {f"accuracy/{dimension}": right[dimension] / n for dimension, n in total.items()}
    return found


def test_ten_thousand_random_answers_score_as_by_the_official_script():
    rng = Random(5)
    kinds = [
        ("image", "Scene Understanding"),
        ("image", "Text Understanding"),
        ("video", "Action Recognition"),
    ]
    items = [item(i, rng.choice("ABCD"), *rng.choice(kinds)) for i in range(10_000)]
    answers = [rng.choice(["A", "B", "C", "D", "A.", "(B)", "c", "", "no"]) for _ in items]
    figures = figures_of(SEED, items, answers)
    expected = by_the_official_script(items, answers)
    assert {name: figures[name].value for name in expected} == pytest.approx(expected, abs=1e-12)
    lenient = sum(
        {"A.": "A", "(B)": "B", "c": "C"}.get(a, a) == i.gold for i, a in zip(items, answers, strict=True)
    )
    assert figures["lenient"].value == pytest.approx(lenient / 10_000, abs=1e-12)
    assert set(figures) - set(expected) == {"lenient", "accuracy/unknown question set (9 questions)"}


def test_all_that_is_wrong_is_reported_at_once(tmp_path):
    rows = [
        question("1", answer="E"), question("2", data_type="audio"), question("3", question_type_id=99),
        {"question_id": "4"}, question("6"), video("v1"),
    ]  # fmt: skip
    write(tmp_path, rows, images=False)
    (tmp_path / "SEED-Bench-image").mkdir()
    problems = problems_of(lambda: load(tmp_path))
    got = [(p.code, p.got) for p in problems]
    assert [code for code, _ in got] == ["benchmarks/record"] * 4 + [
        "benchmarks/no-images",
        "benchmarks/no-file",
    ]
    assert (
        "no key `question`" in got[0][1]
        and "`answer`: 'E'" in got[1][1]
        and "`data_type`: 'audio'" in got[2][1]
    )
    assert "99" in got[3][1] and "1_7, 3_7, 6_7" in got[4][1]


def test_a_pointer_another_file_and_a_missing_one_are_refused(tmp_path):
    assert [p.code for p in problems_of(lambda: load(tmp_path))] == ["benchmarks/no-file"]
    (tmp_path / "SEED-Bench.json").write_bytes(POINTER)
    assert [p.code for p in problems_of(lambda: load(tmp_path))] == ["benchmarks/lfs-pointer"]
    (tmp_path / "SEED-Bench.json").write_text('{"questions": [], "question_type": []}')
    assert [p.code for p in problems_of(lambda: load(tmp_path))] == ["benchmarks/record"]


def test_an_upload_needs_an_answer_to_each_question():
    items = [item(0, "A"), item(1, "B")]
    problems = problems_of(lambda: SEED.upload(items, {"0": "A", "x": "B"}))
    assert [p.code for p in problems] == ["benchmarks/upload-answers"] * 2
