"""MME: two layouts, pairs of questions, four characters, sums of subtasks with their interval."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

from lmmkit.evaluate.answers.foreign import read_foreign
from lmmkit.evaluate.answers.score import matched
from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.benchmarks.mme import PART_OF, SUBTASKS, Mme, official_yes_no
from tests.support.benchmark_files import figures_of, problems_of, write_images

MME = Mme()
NESTED = ("artwork", "celebrity", "landmark", "posters", "scene")  # as in the release


def text(*lines):
    return "".join(f"{question} Please answer yes or no.\t{label}\n" for question, label in lines)


def write(folder, subtasks=tuple(PART_OF), images=2):
    for subtask in subtasks:
        texts, pixels = folder / subtask, folder / subtask
        if subtask in NESTED:
            texts, pixels = texts / "questions_answers_YN", pixels / "images"
        texts.mkdir(parents=True)
        for i in range(images):
            (texts / f"{i:04d}.txt").write_text(text((f"Is this {i}?", "Yes"), (f"Is this {i + 1}?", "No")))
            write_images(pixels, [f"{i:04d}.{'png' if i % 2 else 'jpg'}"])


def load(folder):
    return list(MME.items(folder, split="test", cache=folder / "cache"))


def asked(subtasks, images):
    """Returns items with labels yes and no for each image."""
    return [
        Item(
            id=f"{subtask}/{i}.jpg{end}", prompt="?", gold=gold, cluster=f"{subtask}/{i}.jpg",
            groups={"part": PART_OF[subtask], "subtask": subtask},
        )
        for subtask in subtasks
        for i in range(images)
        for end, gold in (("", "yes"), ("#2", "no"))
    ]  # fmt: skip


def test_both_layouts_give_llava_s_ids_and_prompts(tmp_path):
    write(tmp_path)
    items = {item.id: item for item in load(tmp_path)}
    assert len(items) == 14 * 2 * 2 and {item.groups["subtask"] for item in items.values()} == set(PART_OF)
    first, second = items["existence/0000.jpg"], items["existence/0000.jpg#2"]
    assert first.prompt == "Is this 0?\nAnswer the question using a single word or phrase."
    assert (first.gold, second.gold, first.cluster) == ("yes", "no", second.cluster)
    assert first.images == second.images == (str(tmp_path / "existence/0000.jpg"),)
    nested = items["artwork/images/0001.png"]
    assert nested.images == (str(tmp_path / "artwork/images/0001.png"),)
    assert nested.groups == {"part": "perception", "subtask": "artwork"}
    assert items["OCR/0001.png"].groups["part"] == "perception"
    assert items["code_reasoning/0001.png"].groups["part"] == "cognition"


def test_two_spaces_before_the_sentence_leave_the_prompt_as_it_is(tmp_path):
    write(tmp_path)
    lines = "Is it a cat?  Please answer yes or no.\tYes \r\n\nIs it red\tNO"
    (tmp_path / "count/0000.txt").write_text(lines)
    first, second = load(tmp_path)[4:6]
    assert first.prompt == "Is it a cat?\nAnswer the question using a single word or phrase."
    assert second.prompt == "Is it red\nAnswer the question using a single word or phrase."
    assert (first.gold, second.gold) == ("yes", "no")


@pytest.mark.parametrize(
    ("answer", "official", "lenient"),
    [
        ("Yes", "yes", "yes"), ("no", "no", "no"), ("NO.", "no", "no"), ("None", "no", "none"), ("it is yes", "other", "it"),
        ("y", "other", "yes"), ("n", "other", "no"), ("", "other", ""), (" yes", "yes", "yes"), ("nyes", "yes", "nyes"),
        ("Yes, no", "yes", "yes"), ("Nothing", "no", "nothing"), ("a no", "no", "a"), ("is no", "other", "is"),
    ],
)  # fmt: skip
def test_the_official_parser_reads_four_characters(answer, official, lenient):
    assert official_yes_no(answer) == official
    for gold in ("yes", "no"):
        verdict = MME.verdict(Item(id="x", prompt="?", gold=gold), answer)
        assert verdict.score == float(official == gold) and verdict.lenient == float(lenient == gold)
        assert verdict.parsed == (None if official == "other" else official)


def test_a_constant_answer_has_half_of_the_accuracy_and_no_pair():
    items = asked(PART_OF, 3)
    figures = figures_of(MME, items, ["Yes"] * len(items))
    assert next(iter(figures)) == MME.headline == "perception"
    assert (figures["perception"].value, figures["perception"].chance) == (500.0, 500.0)
    assert (figures["cognition"].value, figures["cognition"].chance) == (200.0, 200.0)
    assert (
        figures["perception/existence"].value == 50.0 and figures["cognition/code_reasoning"].chance == 50.0
    )
    right = figures_of(MME, items, [item.gold for item in items])
    assert right["perception"].value == 2000.0 and right["cognition"].value == 800.0
    assert right["perception"].high == 2000.0 and right["perception"].low < 2000.0
    assert right["perception"].n == 60 and right["perception/OCR"].n == 6


def test_the_table_is_in_points():
    items = asked(PART_OF, 2)
    lines = MME.table(figures_of(MME, items, ["yes"] * len(items)))
    assert lines[0] == ("MME", "points", "chance", "n") and lines[1][0] == "perception"
    assert lines[1][1].startswith("500.0 (") and lines[1][2:] == ("500.0", "40")


def by_the_official_script(lines):
    """Returns the score of a subtask from its lines, taken in pairs."""
    right = pairs = 0
    for i in range(0, len(lines), 2):
        hits = 0
        for line in lines[i : i + 2]:
            _, _, label, answer = line.split("\t")
            answer, label = answer.lower(), label.lower()
            if answer not in ("yes", "no"):
                answer = next((word for word in ("yes", "no") if answer[:4].find(word) >= 0), "other")
            hits += answer == label
        right += hits
        pairs += hits == 2
    return right / len(lines) * 100 + pairs / (len(lines) / 2) * 100


def test_ten_thousand_random_answers_score_as_by_the_official_script():
    rng = Random(7)
    items = asked(PART_OF, 358)
    answers = [rng.choice(["Yes", "No", "yes.", "None", "maybe", "no way", "it is yes", ""]) for _ in items]
    assert len(items) > 10_000
    figures = figures_of(MME, items, answers)
    scores = {}
    for subtask in PART_OF:
        rows = zip(items, answers, strict=True)
        lines = [f"f\tq\t{item.gold}\t{answer}" for item, answer in rows if item.groups["subtask"] == subtask]
        scores[subtask] = by_the_official_script(lines)
        assert figures[f"{PART_OF[subtask]}/{subtask}"].value == pytest.approx(scores[subtask], abs=1e-9)
    for part, subtasks in SUBTASKS.items():
        assert figures[part].value == pytest.approx(sum(scores[subtask] for subtask in subtasks), abs=1e-9)


def test_the_interval_is_that_of_drawing_images_in_each_subtask():
    rng = Random(3)
    items = asked(SUBTASKS["perception"], 60)
    answers = [item.gold if rng.random() < 0.8 else "other" for item in items]
    figure = figures_of(MME, items, answers)["perception"]
    right = np.array([a == i.gold for a, i in zip(answers, items, strict=True)], float).reshape(10, 60, 2)
    points = 50 * right.sum(axis=2) + 100 * right.prod(axis=2)
    draws = np.random.default_rng(0).integers(60, size=(4000, 10, 60))
    sums = np.take_along_axis(points[None], draws, axis=2).mean(axis=2).sum(axis=1)
    low, high = np.percentile(sums, [2.5, 97.5])
    assert figure.high - figure.low == pytest.approx(high - low, rel=0.06)
    assert figure.low == pytest.approx(low, abs=8) and figure.high == pytest.approx(high, abs=8)


def test_an_upload_has_the_lines_that_the_official_script_pairs(tmp_path):
    write(tmp_path)
    items = load(tmp_path)
    answers = {item.id: "Yes" for item in items}
    files = MME.upload(items, answers)
    assert set(files) == {f"{subtask}.txt" for subtask in PART_OF}
    assert files["artwork.txt"].decode().splitlines()[:2] == [
        "0000.txt\tIs this 0? Please answer yes or no.\tYes\tYes",
        "0000.txt\tIs this 1? Please answer yes or no.\tNo\tYes",
    ]
    assert by_the_official_script(files["count.txt"].decode().splitlines()) == 50.0
    wordy = answers | {items[0].id: "Yes\n\tNo\r"}
    assert MME.upload(items, wordy)["existence.txt"].decode().splitlines()[0].endswith("\tYes\tYes  No ")
    del answers[items[1].id]
    (problem,) = problems_of(lambda: MME.upload(items, answers))
    assert problem.code == "benchmarks/upload-answers" and items[1].id in problem.got


def test_two_images_of_one_name_are_refused(tmp_path):
    write(tmp_path)
    write_images(tmp_path / "count", ["0000.png"])
    (problem,) = problems_of(lambda: load(tmp_path))
    assert problem.code == "benchmarks/duplicate-id" and "image '0000' twice" in problem.got


def test_a_part_that_is_not_asked_has_no_figure(tmp_path):
    write(tmp_path)
    items = [item for item in load(tmp_path) if item.groups["subtask"] == "count"]
    figures = figures_of(MME, items, ["yes", "no"] * 2)
    assert {name for name in figures if name.startswith("cog")} == set()
    assert figures["perception"].value == figures["perception/count"].value == 200.0
    assert figures_of(MME, items[:1], ["yes"]) == {}


def test_all_that_is_wrong_is_reported_at_once(tmp_path):
    write(tmp_path, subtasks=[subtask for subtask in PART_OF if subtask != "OCR"])
    (tmp_path / "count/0000.jpg").unlink()
    (tmp_path / "color/0001.txt").unlink()
    (tmp_path / "scene/questions_answers_YN/0000.txt").write_text("Is it?\tYes\n")
    (tmp_path / "scene/questions_answers_YN/0001.txt").write_text("Is it?\tYes\nIs it?\tmaybe\n")
    (tmp_path / "landmark/questions_answers_YN/0001.txt").write_text("Is it? Yes\nIs it? No\n")
    for path in (tmp_path / "posters/questions_answers_YN").iterdir():
        path.unlink()
    got = {(p.code, p.got) for p in problems_of(lambda: load(tmp_path))}
    assert got == {
        ("benchmarks/no-images", "no image for 0000"),
        ("benchmarks/no-file", "no text for 0001"),
        ("benchmarks/record", "something else in 0000.txt, 0001.txt"),
        ("benchmarks/record", "something else in 0001.txt"),
        ("benchmarks/no-file", "no .txt file"),
        ("benchmarks/no-file", "no text for 0000, 0001"),
        ("benchmarks/no-file", "no such folder"),
    }
    assert [p.code for p in problems_of(lambda: load(tmp_path / "nothing"))] == ["benchmarks/no-file"]


@pytest.mark.parametrize("subtasks", [tuple(PART_OF), ("OCR",), ("posters", "existence")])
def test_the_uploaded_files_are_scored_as_the_answers(tmp_path, subtasks):
    """Has images of one name and equal questions in all subtasks; the files are read in another order."""
    write(tmp_path / "files")
    items = load(tmp_path / "files")
    answers = {item.id: ("yes" if i % 3 else "no") for i, item in enumerate(items)}
    (tmp_path / "upload").mkdir()
    for name, content in MME.upload(items, answers).items():
        if Path(name).stem in subtasks:
            lines = content.decode().splitlines(keepends=True)
            (tmp_path / "upload" / name).write_text("".join(lines[2:] + lines[:2]))
    form, found = read_foreign(tmp_path / "upload")
    fitting = matched(items, found, "x")
    expected = {item.id: answers[item.id] for item in items if item.groups["subtask"] in subtasks}
    assert form == "mme" and fitting.texts == expected and not fitting.ordered and not fitting.extra
