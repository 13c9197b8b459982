"""The twelve benchmarks in their official formats: a few items each, every image another one."""

from __future__ import annotations

import base64
import csv
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path

from PIL import Image

from lmmkit.evaluate.benchmarks.mme import PART_OF
from lmmkit.evaluate.benchmarks.mmmu import DOMAIN_OF

NESTED = ("artwork", "celebrity", "landmark", "posters", "scene")  # folders of MME with a folder of images
TABLE = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category", "comment", "split")  # fmt: skip


def write_official(folder: Path, names: Iterable[str] = ()) -> Path:
    """Writes the files of the benchmarks `names`, by default of all, into FOLDER/NAME; returns the folder."""
    for name in names or WRITERS:
        (folder / name).mkdir(parents=True)
        WRITERS[name](folder / name)
    return folder


def noise(key: str, kind: str = "JPEG") -> bytes:
    """Returns an image file whose colours follow from `key`."""
    draw, file = zlib.crc32(key.encode()), BytesIO()
    image = Image.new("RGB", (2, 2))
    image.putdata([tuple((draw >> shift + 4 * i) % 256 for shift in (0, 5, 11)) for i in range(4)])
    image.resize((28 + draw % 9, 24)).save(file, kind)
    return file.getvalue()


def write_noise(path: Path) -> None:
    """Writes an image, another one for each name; PNG unless the name says JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(noise(path.name, "JPEG" if path.suffix == ".jpg" else "PNG"))


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(value), encoding="utf-8")


def write_json_lines(path: Path, values: Iterable[object]) -> None:
    """Writes one JSON value a line."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def humans(*answers: str) -> list[dict]:
    """Returns ten annotators' answers: these in turn."""
    several = [answers[i % len(answers)] for i in range(10)]
    return [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(several, 1)]


def vqav2(folder: Path) -> None:
    """Writes val with annotations, test-dev and test2015."""
    asked = {
        "val2014": [(42000, 42), (42001, 42), (7000, 7)],
        "test-dev2015": [(5000, 5), (9001, 9)],
        "test2015": [(5000, 5), (5001, 5), (9000, 9), (9001, 9)],
    }
    for subset, ids in asked.items():
        questions = [
            {"image_id": image, "question": f"Is it sunny in {id}?", "question_id": id} for id, image in ids
        ]
        header = {
            "info": {},
            "task_type": "Open-Ended",
            "data_type": "mscoco",
            "data_subtype": subset,
            "license": {},
        }
        write_json(folder / f"v2_OpenEnded_mscoco_{subset}_questions.json", header | {"questions": questions})
        images = subset.replace("-dev", "")
        for _, image in ids:
            write_noise(folder / images / f"COCO_{images}_{image:012d}.jpg")
    annotations = [
        {
            "question_id": id, "image_id": image, "question_type": "is it", "answer_type": "yes/no",
            "multiple_choice_answer": "yes", "answers": humans("yes", "yes", "no"),
        }
        for id, image in asked["val2014"]
    ]  # fmt: skip
    write_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})


def gqa(folder: Path) -> None:
    """Writes testdev: three balanced questions, and one that is not."""
    questions = {}
    for id, image, structural, answer in (
        ("201", "n1", "verify", "no"),
        ("202", "n1", "query", "car"),
        ("203", "n2", "choose", "red"),
        ("204", "n2", "query", "dog"),
    ):
        questions[id] = {
            "question": f"What is {id}?", "imageId": image, "answer": answer, "fullAnswer": f"{answer}.",
            "isBalanced": id != "204", "types": {"structural": structural, "semantic": "attr", "detailed": "verifyColor"},
            "groups": {"global": "object" if structural == "query" else None, "local": "x"},
            "semantic": [{"operation": "select", "argument": "car (1)", "dependencies": []}], "entailed": [],
            "equivalent": [id], "semanticStr": "", "annotations": {},
        }  # fmt: skip
        write_noise(folder / "images" / f"{image}.jpg")
    write_json(folder / "testdev_balanced_questions.json", questions)


def vizwiz(folder: Path) -> None:
    """Writes val with answers, and test without."""
    for split, n in (("val", 3), ("test", 2)):
        records = [
            {"image": f"VizWiz_{split}_{i:08d}.jpg", "question": f"what IS this, number {i}? "}
            for i in range(n)
        ]
        if split == "val":
            answers = [{k: v for k, v in each.items() if k != "answer_id"} for each in humans("mug", "a mug")]
            records = [r | {"answers": answers, "answer_type": "other", "answerable": 1} for r in records]
        write_json(folder / f"{split}.json", records)
        for record in records:
            write_noise(folder / split / record["image"])


def scienceqa(folder: Path) -> None:
    """Writes test, with and without images and hints, and val."""
    problems = {
        id: {
            "question": f"Which is {id}?", "choices": ["x", "y", "z"][: 2 + int(id) % 2], "answer": 1, "hint": hint,
            "image": image, "task": "closed choice", "grade": f"grade{id}", "subject": "language science", "topic": "t",
            "category": "c", "skill": "s", "lecture": "", "solution": "", "split": split,
        }
        for id, hint, image, split in (
            ("4", "", None, "test"), ("5", "Look.", "image.png", "test"), ("8", "", "image.png", "test"),
            ("9", "", None, "val"), ("2", "", None, "train"),
        )
    }  # fmt: skip
    write_json(folder / "problems.json", problems)
    write_json(
        folder / "pid_splits.json",
        {"train": ["2"], "val": ["9"], "test": ["4", "5", "8"], "trainval": ["2", "9"]},
    )
    for id in ("5", "8"):
        path = folder / "images" / "test" / id / "image.png"
        write_noise(path)
        path.write_bytes(noise(id, "PNG"))


def textvqa(folder: Path) -> None:
    """Writes val, with one image in which OCR found nothing."""
    data = [
        {
            "question_id": 34602 + i, "question": f"what is the Brand {i}?", "question_tokens": [], "image_id": image,
            "image_width": 30, "image_height": 24, "image_classes": [], "set_name": "val",
            "answers": [each["answer"] for each in humans("nokia", "Nokia", "nous")],
        }
        for i, image in enumerate(("003a", "003a", "00f1"))
    ]  # fmt: skip
    header = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    write_json(folder / "TextVQA_0.5.1_val.json", header | {"data": data})
    tokens = [{"image_id": "003a", "ocr_tokens": ["NOKIA", 'a"b,']}, {"image_id": "00f1", "ocr_tokens": []}]
    write_json(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"dataset_type": "val", "data": tokens})
    for image in ("003a", "00f1"):
        write_noise(folder / "train_images" / f"{image}.jpg")


def pope(folder: Path) -> None:
    """Writes three subsets with the same present objects."""
    for subset, absent in (("random", "car"), ("popular", "chair"), ("adversarial", "fork")):
        lines = []
        for i in (310196, 210789):
            image = f"COCO_val2014_{i:012d}.jpg"
            for thing, label in (("dog", "yes"), (absent, "no")):
                text = f"Is there a {thing} in the image?"
                lines.append({"question_id": len(lines) + 1, "image": image, "text": text, "label": label})
            write_noise(folder / "val2014" / image)
        write_json_lines(folder / f"coco_pope_{subset}.json", lines)


def seed(folder: Path) -> None:
    """Writes questions about images, two of them with one id, and about a video."""
    rows = []
    for id, dimension, data in (
        ("101669", 5, "image"),
        ("49914", 1, "image"),
        ("49914", 5, "image"),
        ("v3", 10, "video"),
    ):
        image = f"{len(rows)}_{id}"
        rows.append({
            "answer": "ABCD"[len(rows)], "choice_a": "1", "choice_b": "2", "choice_c": "3", "choice_d": "4",
            "data_id": image if data == "image" else "3.mp4", "data_type": data, "question": f"How many, {len(rows)}?",
            "question_id": id, "question_type_id": dimension,
        })  # fmt: skip
        write_noise(
            folder / "SEED-Bench-image" / image
            if data == "image"
            else folder / "SEED-Bench-video-image" / f"{dimension}_{id}.png"
        )
    types = {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10}
    write_json(folder / "SEED-Bench.json", {"questions": rows, "question_type": types})


def mme(folder: Path) -> None:
    """Writes all subtasks in their two layouts."""
    for subtask in PART_OF:
        texts = images = folder / subtask
        if subtask in NESTED:
            texts, images = texts / "questions_answers_YN", images / "images"
        texts.mkdir(parents=True)
        lines = [f"Is this a {thing}? Please answer yes or no.\t{label}\n" for thing, label in (("cat", "Yes"), ("dog", "No"))]  # fmt: skip
        (texts / "0001.txt").write_text("".join(lines))
        write_noise(images / "0001.jpg")
        (images / "0001.jpg").write_bytes(noise(subtask))


def llava_wild(folder: Path) -> None:
    """Writes questions of all categories, captions, reference answers and rules."""
    rows = [
        {"question_id": i, "image": f"00{i % 2 + 1}.jpg", "text": f"Where is {i}?", "category": category}
        for i, category in enumerate(("conv", "detail", "complex"))
    ]
    write_json_lines(folder / "questions.jsonl", rows)
    contexts = [{"image": "001.jpg", "caption": "A beach."}, {"image": "002.jpg", "caption": ["A dog.", "Sand."]}]  # fmt: skip
    write_json_lines(folder / "context.jsonl", contexts)
    references = [
        {"question_id": i, "text": f"On beach {i}.", "answer_id": "x", "model_id": "gpt-4"} for i in range(3)
    ]
    write_json_lines(folder / "answers_gpt4.jsonl", references)
    rules = {
        f"llava_bench_{category}": {"role": "Assistant", "prompt": f"Rate {category}."}
        for category in ("conv", "detail", "complex")
    }
    write_json(folder / "rule.json", rules)
    for row in rows:
        write_noise(folder / "images" / row["image"])


def mm_vet(folder: Path, n: int = 3) -> None:
    """Writes `n` questions, and the evaluator with its table of examples."""
    write_json(folder / "mm-vet.json", {
        f"v1_{i}": {
            "imagename": f"v1_{i}.png", "question": f"x in {i}?", "answer": "-1<AND>-5", "imagesource": "url",
            "capability": capability,
        }
        for i, capability in zip(range(n), cycle((["ocr", "math"], ["rec"], ["rec"])), strict=False)
    })  # fmt: skip
    (folder / "mm-vet_evaluator.py").write_text(
        'import openai\nprompt = """Compare.\nx? | 1 | 2 | 0.0\n"""\n'
    )
    for i in range(n):
        write_noise(folder / "images" / f"v1_{i}.png")


def mmmu(folder: Path) -> None:
    """Writes a parquet file for each subject with one question: those of Math are open; and the file of answers."""
    from pyarrow import Table, parquet

    key = {}
    for subject in DOMAIN_OF:
        row = {
            "id": f"validation_{subject}_1", "question": f"Who painted <image 1> of {subject}?", "options": "['Giotto', 'Vermeer']",
            "explanation": "", "img_type": "['Paintings']", "answer": "B", "topic_difficulty": "Easy",
            "question_type": "multiple-choice", "subfield": "x",
            "image_1": {"bytes": noise(subject, "PNG"), "path": f"{subject}_1.png"}, "image_2": None,
        }  # fmt: skip
        if subject == "Math":
            row |= {"question_type": "open", "options": "[]", "answer": "1.06"}
        (folder / subject).mkdir()
        parquet.write_table(Table.from_pylist([row]), folder / subject / "validation-00000-of-00001.parquet")
        kind = "short-answer" if subject == "Math" else "multiple-choice"
        key[row["id"]] = {"question_type": kind, "ground_truth": row["answer"]}
    write_json(folder / "answer_dict_val.json", key)


def mmbench(folder: Path) -> None:
    """Writes dev, and test without answers: questions with two, three and four options, in all their rotations."""
    for split in ("dev", "test"):
        write_table(folder / f"mmbench_{split}_20230712.tsv", mmbench_rows(split))


def mmbench_rows(split: str) -> list[dict[str, str]]:
    """Returns the rows of a table."""
    rows = []
    for index, options in (
        (241, ("red", "blue")),
        (242, ("one", "two", "three")),
        (7, ("up", "down", "left", "right")),
    ):
        image = base64.b64encode(noise(str(index))).decode()
        for turn in range(len(options)):
            turned = [*options[turn:], *options[:turn]]
            rows.append(dict.fromkeys(TABLE, "") | dict(zip("ABCD", turned, strict=False)) | {
                "index": str(index + turn * 1_000_000), "question": f"What is {index}?", "image": image, "split": split,
                "hint": "Look." if index == 7 else "nan", "category": "colour", "l2-category": "perception",
                "answer": "ABCD"[turned.index(options[0])] if split == "dev" else "",
            })  # fmt: skip
    return rows


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Writes a table of MMBench."""
    names = [name for name in TABLE if name != "answer" or any(row["answer"] for row in rows)]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, names, delimiter="\t", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


WRITERS: dict[str, Callable[[Path], None]] = {
    "vqav2": vqav2, "gqa": gqa, "vizwiz": vizwiz, "scienceqa": scienceqa, "textvqa": textvqa, "pope": pope, "seed": seed,
    "mme": mme, "llava-wild": llava_wild, "mm-vet": mm_vet, "mmmu": mmmu, "mmbench": mmbench,
}  # fmt: skip
