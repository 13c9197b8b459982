"""What is wrong with a benchmark's official files is named before a question is asked: exit 2, no answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lmmkit.evaluate.benchmarks.mmmu import DOMAIN_OF
from tests.support.benchmark_files import POINTER
from tests.support.official_benchmarks import TABLE, WRITERS, mmbench_rows, write_noise, write_table
from tests.test_cli import run

Fault = Callable[[Path], object]
NO_IMAGES, NO_FILE, LFS, NOT_JSON, RECORD, VERSION, TWICE = (
    f"benchmarks/{name}"
    for name in (
        "no-images",
        "no-file",
        "lfs-pointer",
        "not-json",
        "record",
        "other-version",
        "duplicate-id",
    )
)


def removed(name: str) -> Fault:
    """Returns the fault that a file is missing."""
    return lambda folder: (folder / name).unlink()


def truncated(name: str, share: float = 0.6) -> Fault:
    """Returns the fault that a file ends too early."""

    def fault(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return fault


def pointer(name: str) -> Fault:
    """Returns the fault that a file was not fetched from Git LFS."""
    return lambda folder: (folder / name).write_bytes(POINTER)


def changed(name: str, old: str, new: str) -> Fault:
    """Returns the fault that a text in a file is another one."""

    def fault(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return fault


def joined(name: str) -> Fault:
    """Returns the fault that the lines of a file are in it twice."""
    return lambda folder: (folder / name).write_text((folder / name).read_text() * 2)


def twice(name: str, *keys: str) -> Fault:
    """Returns the fault that the first record of a list below `keys` is in it twice."""

    def fault(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        found = value
        for key in keys:
            found = found[key]
        found.append(found[0])
        (folder / name).write_text(json.dumps(value))

    return fault


def both(*faults: Fault) -> Fault:
    """Returns several faults together."""
    return lambda folder: [fault(folder) for fault in faults]


def copied(source: str, name: str) -> Fault:
    """Returns the fault that a file has the content of another."""
    return lambda folder: shutil.copy(folder / source, folder / name)


def first_key_twice(name: str) -> Fault:
    """Returns the fault that an object of records has its first key twice."""

    def fault(folder: Path) -> None:
        text = (folder / name).read_text()
        (key, value), *_ = json.loads(text).items()
        (folder / name).write_text(text[:-1] + f", {json.dumps(key)}: {json.dumps(value)}}}")

    return fault


def same_row_twice(folder: Path) -> None:
    """Repeats a row of a table."""
    rows = mmbench_rows("dev")
    write_table(folder / "mmbench_dev_20230712.tsv", [*rows, rows[0]])


def without_a_rotation(folder: Path) -> None:
    """Writes a table that was cut between two rows."""
    write_table(folder / "mmbench_dev_20230712.tsv", mmbench_rows("dev")[:-1])


def a_table_without_images(folder: Path) -> None:
    """Writes a table whose images are no images."""
    write_table(
        folder / "mmbench_dev_20230712.tsv", [row | {"image": "aGVsbG8="} for row in mmbench_rows("dev")]
    )


def of_split_dev(folder: Path) -> None:
    """Puts records of dev into the file of a subject."""
    from pyarrow import Table, parquet

    path = folder / "Art/validation-00000-of-00001.parquet"
    (row,) = parquet.ParquetFile(path).read().to_pylist()
    parquet.write_table(Table.from_pylist([row | {"id": "dev_Art_1"}]), path)


def one_id_in_two_files(folder: Path) -> None:
    """Repeats the file of a subject."""
    source = folder / "Art/validation-00000-of-00001.parquet"
    shutil.copy(source, folder / "Art/validation-00001-of-00002.parquet")


def without_an_image(folder: Path) -> None:
    """Removes the image from a record."""
    from pyarrow import Table, parquet

    path = folder / "Art/validation-00000-of-00001.parquet"
    (row,) = parquet.ParquetFile(path).read().to_pylist()
    parquet.write_table(Table.from_pylist([row | {"image_1": None}]), path)


def another_png(folder: Path) -> None:
    """Writes a second image of one name."""
    write_noise(folder / "count/0001.png")


V2 = "v2_OpenEnded_mscoco_val2014_questions.json"
NOTES = "v2_mscoco_val2014_annotations.json"
GQA = "testdev_balanced_questions.json"
TEXT = "TextVQA_0.5.1_val.json"
OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"
RANDOM = "coco_pope_random.json"
ADVERSARIAL = "coco_pope_adversarial.json"
ART = "Art/validation-00000-of-00001.parquet"
BENCH = "mmbench_dev_20230712.tsv"
POPE_IMAGE = "val2014/COCO_val2014_000000310196.jpg"

FAULTS: dict[str, dict[str, tuple[Fault, str]]] = {
    "vqav2": {
        "a missing image": (removed("val2014/COCO_val2014_000000000042.jpg"), NO_IMAGES),
        "truncated": (truncated(NOTES), NOT_JSON),
        "a pointer": (pointer(NOTES), LFS),
        "another split": (copied("v2_OpenEnded_mscoco_test-dev2015_questions.json", V2), VERSION),
        "duplicate ids": (twice(V2, "questions"), TWICE),
        "other annotations": (changed(NOTES, '"question_id": 7000', '"question_id": 7001'), VERSION),
    },
    "gqa": {
        "a missing image": (removed("images/n1.jpg"), NO_IMAGES),
        "truncated": (truncated(GQA), NOT_JSON),
        "a pointer": (pointer(GQA), LFS),
        "another split": (lambda folder: (folder / GQA).rename(folder / "val_balanced_questions.json"), NO_FILE),
        "another version": (changed(GQA, '"isBalanced"', '"balanced"'), RECORD),
        "no balanced question": (changed(GQA, '"isBalanced": true', '"isBalanced": false'), VERSION),
        "duplicate ids": (first_key_twice(GQA), TWICE),
    },
    "vizwiz": {
        "a missing image": (removed("val/VizWiz_val_00000001.jpg"), NO_IMAGES),
        "truncated": (truncated("val.json"), NOT_JSON),
        "a pointer": (pointer("val.json"), LFS),
        "another split": (both(changed("val.json", "VizWiz_val", "VizWiz_train"), copied("val.json", "train.json")), VERSION),
        "the test split": (copied("test.json", "val.json"), RECORD),
        "duplicate ids": (twice("val.json"), TWICE),
    },
    "scienceqa": {
        "a missing image": (removed("images/test/5/image.png"), NO_IMAGES),
        "truncated": (truncated("problems.json"), NOT_JSON),
        "a pointer": (pointer("problems.json"), LFS),
        "another version": (changed("pid_splits.json", '"8"', '"80"'), VERSION),
        "another split": (changed("problems.json", '"split": "test"', '"split": "minitest"'), RECORD),
        "duplicate ids": (changed("pid_splits.json", '"5", "8"', '"5", "5"'), TWICE),
        "duplicate problems": (first_key_twice("problems.json"), TWICE),
    },
    "textvqa": {
        "a missing image": (removed("train_images/003a.jpg"), NO_IMAGES),
        "truncated": (truncated(TEXT), NOT_JSON),
        "truncated tokens": (truncated(OCR), NOT_JSON),
        "a pointer": (pointer(OCR), LFS),
        "another split": (changed(TEXT, '"dataset_type": "val"', '"dataset_type": "train"'), VERSION),
        "other tokens": (changed(OCR, '"image_id": "0', '"image_id": "9'), VERSION),
        "duplicate ids": (twice(TEXT, "data"), TWICE),
    },
    "pope": {
        "a missing image": (removed(POPE_IMAGE), NO_IMAGES),
        "truncated": (truncated(RANDOM, 0.99), NOT_JSON),
        "truncated between lines": (lambda folder: (folder / RANDOM).write_text(""), RECORD),
        "a pointer": (pointer(RANDOM), LFS),
        "an image's pointer": (pointer(POPE_IMAGE), LFS),
        "another version": (changed(RANDOM, "a dog in the image", "a dog in the imange"), VERSION),
        "duplicate ids": (joined(ADVERSARIAL), TWICE),
    },
    "seed": {
        "a missing image": (removed("SEED-Bench-image/0_101669"), NO_IMAGES),
        "a missing frame": (removed("SEED-Bench-video-image/10_v3.png"), NO_IMAGES),
        "truncated": (truncated("SEED-Bench.json"), NOT_JSON),
        "a pointer": (pointer("SEED-Bench.json"), LFS),
        "another version": (changed("SEED-Bench.json", '"data_type": "image"', '"data_type": "Single Image"'), RECORD),
        "no question": (changed("SEED-Bench.json", '"questions": [', '"questions": [], "others": ['), RECORD),
        "duplicate ids": (changed("SEED-Bench.json", '"101669"', '"49914"'), TWICE),
    },
    "mme": {
        "a missing image": (removed("count/0001.jpg"), NO_IMAGES),
        "truncated": (truncated("scene/questions_answers_YN/0001.txt", 0.5), RECORD),
        "a pointer": (pointer("count/0001.txt"), LFS),
        "another version": (lambda folder: shutil.rmtree(folder / "OCR"), NO_FILE),
        "duplicate ids": (another_png, TWICE),
    },
    "llava-wild": {
        "a missing image": (removed("images/001.jpg"), NO_IMAGES),
        "truncated": (truncated("answers_gpt4.jsonl", 0.9), NOT_JSON),
        "a pointer": (pointer("context.jsonl"), LFS),
        "another version": (changed("answers_gpt4.jsonl", '"question_id": 2', '"question_id": 90'), VERSION),
        "other rules": (changed("rule.json", "llava_bench_detail", "coding"), RECORD),
        "duplicate ids": (joined("questions.jsonl"), TWICE),
    },
    "mm-vet": {
        "a missing image": (removed("images/v1_1.png"), NO_IMAGES),
        "truncated": (truncated("mm-vet.json"), NOT_JSON),
        "a truncated script": (truncated("mm-vet_evaluator.py"), RECORD),
        "a pointer": (pointer("mm-vet.json"), LFS),
        "another version": (changed("mm-vet.json", '"math"', '"seq"'), RECORD),
        "duplicate ids": (first_key_twice("mm-vet.json"), TWICE),
    },
    "mmmu": {
        "a missing image": (without_an_image, NO_IMAGES),
        "truncated": (truncated(ART), RECORD),
        "a pointer": (pointer(ART), LFS),
        "another split": (of_split_dev, VERSION),
        "another version": (lambda folder: shutil.rmtree(folder / "Music"), VERSION),
        "other answers": (changed("answer_dict_val.json", "validation_Art_1", "validation_Art_31"), VERSION),
        "duplicate ids": (one_id_in_two_files, TWICE),
    },
    "mmbench": {
        "a missing image": (a_table_without_images, NO_IMAGES),
        "truncated": (truncated(BENCH, 0.95), RECORD),
        "truncated between rows": (without_a_rotation, VERSION),
        "a pointer": (pointer(BENCH), LFS),
        "another language": (lambda folder: (folder / BENCH).rename(folder / "mmbench_dev_cn_20231003.tsv"), NO_FILE),
        "no row": (lambda folder: write_table(folder / BENCH, []), VERSION),
        "two versions": (copied(BENCH, "mmbench_dev_en_20231003.tsv"), NO_FILE),
        "duplicate ids": (same_row_twice, TWICE),
    },
}  # fmt: skip
COMMON = ("a missing image", "truncated", "a pointer", "duplicate ids")


def test_each_benchmark_has_each_kind_of_fault():
    assert set(FAULTS) == set(WRITERS) and len(DOMAIN_OF) == 30 and "image" in TABLE
    for faults in FAULTS.values():
        assert set(COMMON) <= set(faults) and any("another" in name for name in faults)


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name in FAULTS for fault in FAULTS[name]])
def test_a_fault_is_named(answering, official, tmp_path, name, fault):
    shutil.copytree(official / name, tmp_path / name)
    spoil, code = FAULTS[name][fault]
    spoil(tmp_path / name)
    out = tmp_path / "out"
    text = run("eval", answering / "model" / "finetune", "--on", name, "--files", tmp_path, "--out", out, code=2)  # fmt: skip
    assert f"[{code}]" in text and str(tmp_path / name) in text
    assert not out.exists(), "no question was asked"


def test_the_faults_of_several_benchmarks_are_reported_together(answering, official, tmp_path):
    for name in ("pope", "gqa"):
        shutil.copytree(official / name, tmp_path / name)
    removed(POPE_IMAGE)(tmp_path / "pope")
    truncated(GQA)(tmp_path / "gqa")
    words = ["--on", "pope,gqa", "--files", tmp_path, "--out", tmp_path / "out"]
    text = run("eval", answering / "model" / "finetune", *words, code=2)
    assert NO_IMAGES in text and NOT_JSON in text and not (tmp_path / "out").exists()


def test_a_split_without_questions_is_refused(answering, official, tmp_path):
    shutil.copytree(official / "seed", tmp_path / "seed")
    changed("seed/SEED-Bench.json", '"data_type": "video"', '"data_type": "image"')(tmp_path)
    write_noise(tmp_path / "seed/SEED-Bench-image/3.mp4")
    words = ["--on", "seed", "--files", tmp_path, "--out", tmp_path / "out"]
    assert "4 of 4" in run("eval", answering / "model" / "finetune", *words)
    text = run("eval", answering / "model" / "finetune", *words, "--split", "video", code=2)
    assert VERSION in text and "no question of split `video`" in text
    (tmp_path / "a.json").write_text('{"v3": "A"}')
    words = ["score", "seed", "--files", tmp_path, "--answers", tmp_path / "a.json", "--split", "video"]
    assert "no question of split `video`" in run("answers", *words, code=2)


def test_an_image_that_ends_too_early_is_named(answering, official, tmp_path):
    shutil.copytree(official / "pope", tmp_path / "pope")
    truncated(POPE_IMAGE)(tmp_path / "pope")
    words = ["--on", "pope", "--files", tmp_path, "--out", tmp_path / "out"]
    text = run("eval", answering / "model" / "finetune", *words, code=2)
    assert POPE_IMAGE in text and "image" in text
    write_noise(tmp_path / "pope" / POPE_IMAGE)
    assert "12 of 12 answered" in run("eval", answering / "model" / "finetune", *words)
