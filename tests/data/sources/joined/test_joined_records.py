"""COCO captions and VQA files: the samples of the same records in LLaVA's form, and faults by name."""

import json
import pickle
import random

import pytest

from lmmkit.data.sources.bad_records import Policy
from lmmkit.data.sources.joined.official_forms import ASK_SHORT
from lmmkit.data.sources.records import missing_images, open_records
from lmmkit.errors import UserError
from lmmkit.evaluate import vqa_text
from lmmkit.plan.prepare import prepare
from tests.conftest import PLAIN
from tests.data.sources.test_records import mutate
from tests.data.sources.test_records_fuzz import within


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LMMKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    return tmp_path


def opened(folder, value, annotations=None, *, template="vicuna_v1", **options):
    for name, each in (("r.json", value), ("a.json", annotations)):
        if each is not None:
            (folder / name).write_bytes(each if isinstance(each, bytes) else json.dumps(each).encode())
    return reopened(folder, official="coco" if annotations is None else "vqa", template=template, **options)


def reopened(folder, *, official, template="vicuna_v1", **options):
    return open_records(
        "set", records=folder / "r.json", images=folder / "images", template=template, image_fit="pad",
        official=official, annotations=folder / "a.json" if official == "vqa" else None, **options,
    )  # fmt: skip


def named(folder, records, *, annotations=None, template="vicuna_v1", **options):
    """Opens files by names or patterns."""
    return open_records(
        "set", records=folder / records, images=folder / "images", template=template, image_fit="pad",
        official="coco" if annotations is None else "vqa",
        annotations=None if annotations is None else folder / annotations, **options,
    )  # fmt: skip


def in_llava_s_form(folder, values, template="vicuna_v1"):
    (folder / "llava.json").write_text(json.dumps(values))
    return open_records(
        "set", records=folder / "llava.json", images=folder / "images", template=template, image_fit="pad"
    )


def coco(captions=((7, 1, "A cat."), (8, 2, "Two d\u00f6gs."), (9, 1, "A \u732b.")), images=(1, 2)):
    return {
        "info": {"year": 2014},
        "images": [{"id": i, "file_name": f"a/{i:03}.jpg", "height": 4 * i, "license": 3} for i in images],
        "annotations": [{"image_id": image, "id": i, "caption": text} for i, image, text in captions],
    }


def twin_of_coco(value):
    images = {each["id"]: each for each in value["images"]}
    for each in value["annotations"]:
        image = images[each["image_id"]]
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": each["caption"]}]
        more = {"image_id": each["image_id"], "height": image["height"], "license": image["license"]}
        yield {"id": each["id"], "image": image["file_name"], "conversations": turns, **more}


def answers(*texts):
    return [{"answer": text, "answer_id": i} for i, text in enumerate(texts, 1)]


def vqa():
    asked = [(11, 1, "What is it?"), (12, 1, "Is it a cat?"), (21, 2, "How many?")]
    questions = {
        "data_subtype": "val2014",
        "questions": [{"question_id": i, "image_id": image, "question": text} for i, image, text in asked],
    }
    given = [
        (21, 2, answers("2", "two", "2")),
        (11, 1, answers("cat", "a cat")),
        (12, 1, answers("yes", "yes")),
    ]
    annotations = [
        {"question_id": i, "image_id": image, "answers": each, "multiple_choice_answer": each[0]["answer"],
         "answer_type": "other"} for i, image, each in given
    ]  # fmt: skip
    return questions, {"annotations": annotations, "data_subtype": "val2014"}


def twin_of_vqa(questions, annotations):
    found = {each["question_id"]: each for each in annotations["annotations"]}
    for each in questions["questions"]:
        other = found[each["question_id"]]
        turns = [
            {"from": "human", "value": f"<image>\n{each['question']}\n{ASK_SHORT}"},
            {"from": "gpt", "value": other["multiple_choice_answer"]},
        ]
        yield {
            "id": each["question_id"], "image": f"COCO_val2014_{each['image_id']:012}.jpg", "conversations": turns,
            "image_id": each["image_id"], "answer_type": "other", "answers": [a["answer"] for a in other["answers"]],
        }  # fmt: skip


@pytest.mark.parametrize("template", ["plain", "vicuna_v1"])
def test_captions_are_those_of_the_same_records_in_llava_s_form(folder, template):
    rng = random.Random(0)
    captions = [(n, rng.randrange(40), rng.choice(["A cat.", "\u732b", 'A "b".'])) for n in range(300)]
    value = coco(captions, range(40))
    rng.shuffle(value["images"])
    for keys in (list(value), list(value)[::-1]):
        mixed = {key: value[key] for key in keys}
        ours = pickle.loads(pickle.dumps(opened(folder, mixed, template=template)))
        theirs = in_llava_s_form(folder, list(twin_of_coco(value)), template)
        assert list(ours) == list(theirs) and len(ours) == 300 and ours.notes == {}
        assert ours.words_N.tolist() == theirs.words_N.tolist()
        assert (
            len(missing_images(ours))
            == len(missing_images(theirs))
            == len({image for _, image, _ in captions})
        )


def test_questions_are_those_of_the_same_records_in_llava_s_form(folder):
    questions, annotations = vqa()
    ours = pickle.loads(pickle.dumps(opened(folder, questions, annotations)))
    assert list(ours) == list(in_llava_s_form(folder, list(twin_of_vqa(questions, annotations))))
    assert ours[2].turns[0].text == f"How many?\n{ASK_SHORT}" and ours[2].meta["answers"] == ("2", "two", "2")
    assert ours.notes == {"`answer_id` of an answer is not kept": 3} and vqa_text.ASK_SHORT == ASK_SHORT
    assert ours.where(2) == f"{folder / 'r.json'}:1 (record 2)"


def test_an_answer_and_an_image_of_another_version(folder):
    questions, annotations = vqa()
    questions["questions"][0]["image"] = "b/c.png"
    for each in annotations["annotations"]:
        del each["multiple_choice_answer"]
    annotations["annotations"][1]["answers"] = ["dog", "cat", "cat", {"answer": None}]
    records = opened(folder, questions, annotations)
    assert records[0].images[0].path.endswith("images/b/c.png")
    assert [sample.turns[1].text for sample in records] == ["cat", "yes", "2"]
    assert records.notes["an entry of `answers` without a text is not read"] == 1


def test_white_space_around_texts_is_left_out_and_counted(folder):
    value = coco([(1, 1, "A cat. \n"), (2, 1, "\n A\n dog."), (3, 2, "A bird.")])
    records = opened(folder, value, template="plain")
    assert [sample.turns[1].text for sample in records] == ["A cat.", "A\n dog.", "A bird."]
    assert records.notes == {"white space around `caption` is left out": 2}
    questions, annotations = vqa()
    questions["questions"][0]["question"] += " "
    annotations["annotations"][0]["multiple_choice_answer"] = "2\n"
    del annotations["annotations"][2]["multiple_choice_answer"]
    annotations["annotations"][2]["answers"] = ["no ", "yes", "no "]
    records = opened(folder, questions, annotations)
    assert [sample.turns[1].text for sample in records] == ["cat", "no", "2"]
    assert records[0].turns[0].text == f"What is it?\n{ASK_SHORT}"
    assert records.notes["white space around `question` is left out"] == 1
    assert records.notes["white space around `multiple_choice_answer` is left out"] == 1


def test_ids_may_be_texts(folder):
    value = coco()
    plain = list(opened(folder, value))
    value["images"] = [each | {"id": str(each["id"])} for each in value["images"]]
    value["annotations"][1]["image_id"] = "2"
    del value["info"]
    records = opened(folder, value)
    assert [(s.images, s.turns) for s in records] == [
        (s.images, s.turns) for s in plain
    ] and records.notes == {}
    questions, annotations = vqa()
    plain = list(opened(folder, questions, annotations))
    for each in questions["questions"]:
        each |= {"question_id": str(each["question_id"]), "image_id": str(each["image_id"])}
    records = opened(folder, questions, annotations)
    assert [(s.images, s.turns, s.key) for s in records] == [(s.images, s.turns, s.key) for s in plain]
    value["images"].append({"id": 2, "file_name": "x.jpg"})
    (bad,) = opened(folder, value, bad_records=Policy("skip")).known_bad
    assert (bad.code, bad.got) == ("records/official-entry", "`id` 2 twice")


def test_questions_of_ok_vqa_are_read(folder):
    questions, annotations = vqa()
    for each in annotations["annotations"]:
        del each["multiple_choice_answer"]
        each |= {"question_type": "four", "confidence": 3}
        each["answers"] = [
            a | {"raw_answer": a["answer"] + "s", "answer_confidence": "yes"} for a in each["answers"]
        ]
    records = opened(folder, questions, annotations)
    assert [sample.turns[1].text for sample in records] == ["cat", "yes", "2"]
    assert records.notes == {
        f"`{key}` of an answer is not kept": 3 for key in ("answer_confidence", "answer_id", "raw_answer")
    }


def placed(folder, *paths):
    for path in paths:
        (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / path).touch()


def image_paths(records):
    root = str(records.indexed.image_folder) + "/"
    return [image.path.removeprefix(root) for sample in records for image in sample.images]


def test_images_are_found_in_the_folders_of_2014_and_2017(folder):
    """Each image is under another name: beside, below, of 2014 and of 2017; the last one is absent."""
    numbers = [f"{n:012}" for n in range(1, 8)]
    names = {
        1: f"{numbers[0]}.jpg", 2: f"train2017/{numbers[1]}.jpg", 3: f"val2017/{numbers[2]}.jpg",
        4: f"val2014/COCO_val2014_{numbers[3]}.jpg", 5: f"train2014/COCO_train2014_{numbers[4]}.jpg",
        6: f"COCO_val2014_{numbers[5]}.jpg",
    }  # fmt: skip
    placed(folder, *names.values())
    questions, annotations = vqa()
    asked = [{"question_id": i, "image_id": i, "question": "?"} for i in range(1, 8)]
    given = [{"question_id": i, "image_id": i, "multiple_choice_answer": "a"} for i in range(1, 8)]
    records = opened(
        folder,
        questions | {"questions": asked},
        annotations | {"annotations": given},
        bad_records=Policy("skip"),
    )
    assert image_paths(records) == [*names.values(), f"COCO_val2014_{numbers[6]}.jpg"]
    (missing,) = missing_images(records)
    assert f"images/COCO_val2014_{numbers[6]}.jpg" in missing.got
    captions = coco([(i, i, "A.") for i in range(1, 8)], range(1, 8))
    for each in captions["images"]:
        each["file_name"] = f"{each['id']:012}.jpg"
    records = opened(folder, captions)
    assert image_paths(pickle.loads(pickle.dumps(records))) == [*names.values(), f"{numbers[6]}.jpg"]
    before = records.identity()["images"]
    placed(folder, f"val2017/{numbers[6]}.jpg")
    records = reopened(folder, official="coco")
    assert image_paths(records)[-1] == f"val2017/{numbers[6]}.jpg" and not missing_images(records)
    assert records.identity()["images"] != before
    (folder / "images" / names[1]).unlink()
    assert image_paths(reopened(folder, official="coco"))[0] == names[1]
    (folder / "images" / "train2017").rename(folder / "elsewhere")
    (folder / "images" / "train2017").symlink_to(folder / "elsewhere")
    with pytest.raises(UserError) as error:
        reopened(folder, official="coco")
    (problem,) = error.value.problems
    assert problem.code == "records/image-path" and names[2] in problem.where and "link" in problem.got


def test_a_pattern_names_several_files(folder):
    """Compares files of two subsets with one file that has the entries of both."""
    one, two = coco(), coco([(17, 1, "A dog."), (18, 3, "A fox."), (19, 9, "x")], (1, 3))
    two["images"][0]["file_name"] = "another.jpg"  # each file has ids of its own
    for name, value in (("c-1.json", one), ("c-2.json", two)):
        (folder / name).write_text(json.dumps(value))
    records = named(folder, "c-*.json", bad_records=Policy("skip"))
    assert list(records) == [
        *named(folder, "c-1.json"),
        *named(folder, "c-2.json", bad_records=Policy("skip")),
    ]
    assert image_paths(records)[3:] == ["another.jpg", "a/003.jpg"]
    (bad,) = records.known_bad
    assert (bad.file, bad.record, bad.key) == (str(folder / "c-2.json"), 5, "annotations.2.image_id")
    assert records.where(4) == f"{folder / 'c-2.json'}:1 (record 4)"
    (questions, annotations), whole = vqa(), list(opened(folder, *vqa()))
    for k, order in enumerate(((2,), (0, 1))):
        part = questions | {"questions": [questions["questions"][n] for n in (range(2), [2])[k]]}
        (folder / f"q-{k}.json").write_text(json.dumps(part))
        part = annotations | {"annotations": [annotations["annotations"][n] for n in order]}
        (folder / f"a-{k}.json").write_text(json.dumps(part | {"data_subtype": ("train2014", "val2014")[k]}))
    records = pickle.loads(pickle.dumps(named(folder, "q-?.json", annotations="a-?.json")))
    assert [s.turns for s in records] == [s.turns for s in whole]
    assert [path[:9] for path in image_paths(records)] == ["COCO_val2", "COCO_trai", "COCO_val2"]


def test_what_changed_is_named(folder):
    questions, annotations = vqa()
    before = opened(folder, questions, annotations).identity()
    annotations["annotations"][0]["confidence"] = 1
    after = opened(folder, questions, annotations).identity()
    assert [key for key in after if after[key] != before[key]] == ["annotations"]
    questions["questions"][0]["question"] += "?"
    assert [k for k, v in opened(folder, questions, annotations).identity().items() if v != after[k]] == [
        "records"
    ]
    assert "annotations" not in opened(folder, coco()).identity()


def test_entries_that_nothing_names_are_counted(folder):
    records = opened(folder, coco(images=(1, 2, 3, 4)))
    assert records.notes == {"an entry of `images` that no entry of `annotations` names is not used": 2}


WRONG_CAPTIONS = [
    (lambda v: v["annotations"].append({"id": 1, "image_id": 5, "caption": "x"}), "records/official-entry", "annotations.3.image_id", "5"),
    (lambda v: v["annotations"].append({"id": 1, "caption": "x"}), "records/official-entry", "annotations.3.image_id", "null"),
    (lambda v: v["annotations"].append({"id": 1, "image_id": True, "caption": "x"}), "records/official-entry", "annotations.3.image_id", "true"),
    (lambda v: v["annotations"].append({"id": 1, "image_id": 1, "bbox": [1]}), "records/wrong-type", "annotations.3.caption", "null"),
    (lambda v: v["annotations"].append({"id": 1, "image_id": 1, "caption": " "}), "records/no-answer", "annotations.3", "empty"),
    (lambda v: v["annotations"].append(3), "records/wrong-type", "", "a number"),
    (lambda v: v["images"].append([]), "records/wrong-type", "", "a list"),
    (lambda v: v["images"].append({"id": 2, "file_name": "x"}), "records/official-entry", "images.2.id", "2 twice"),
    (lambda v: v["images"].append({"file_name": "x"}), "records/official-entry", "images.2.id", "null"),
    (lambda v: v["images"][1].update(file_name="../x"), "records/image-path", "images.file_name", "goes up"),
    (lambda v: v["images"][1].pop("file_name"), "records/image-markers", "annotations", "0 images"),
]  # fmt: skip
WRONG_QUESTIONS = [
    (lambda q, a: q["questions"][0].update(question=" "), "records/no-question", "questions.0", "r.json"),
    (lambda q, a: q["questions"][2].update(question=" "), "records/no-question", "questions.2", "r.json"),
    (lambda q, a: a["annotations"][2].update(answers=None, multiple_choice_answer=None), "records/wrong-type", "annotations.multiple_choice_answer", "r.json"),
    (lambda q, a: a["annotations"][2].update(multiple_choice_answer=["cat"]), "records/wrong-type", "annotations.multiple_choice_answer", "r.json"),
    (lambda q, a: q["questions"][0].update(question=3), "records/wrong-type", "questions.0.question", "r.json"),
    (lambda q, a: a["annotations"].pop(), "records/official-entry", "questions.1.question_id", "r.json"),
    (lambda q, a: a["annotations"][0].update(image_id=9), "records/official-entry", "annotations.image_id", "r.json"),
    (lambda q, a: a["annotations"].append([]), "records/wrong-type", "", "a.json"),
    (lambda q, a: a["annotations"].append({"question_id": [1]}), "records/official-entry", "annotations.3.question_id", "a.json"),
    (lambda q, a: (a.pop("data_subtype"), q["questions"][1].update(image="x")), "records/official-entry", "questions.image_id", "r.json"),
    (lambda q, a: a["annotations"][0].update(answers=[], multiple_choice_answer=""), "records/no-answer", "questions.2", "r.json"),
]  # fmt: skip


def test_each_fault_is_named_with_its_entry(folder):
    for change, code, part, word in WRONG_CAPTIONS:
        change(value := coco())
        (bad, *_) = opened(folder, value, bad_records=Policy("skip")).known_bad
        assert (bad.code, bad.key) == (code, part) and word in bad.got, bad
        assert bad.file.endswith("r.json") and bad.line == 1 and bad.hint
    for change, code, part, file in WRONG_QUESTIONS:
        change(*(values := vqa()))
        records = opened(folder, *values, bad_records=Policy("skip"))
        bad = records.known_bad[0]
        assert (bad.code, bad.key) == (code, part) and bad.file.endswith(file), bad


def test_files_that_are_no_such_object_are_refused(folder):
    questions, annotations = vqa()
    for value, other, file, word in (
        ([], None, "r.json", "a JSON list"), ("x", None, "r.json", "no JSON object"), (b"", None, "r.json", "no JSON object"),
        (b"\x80\x02]q\x00.", None, "r.json", "no JSON object"), (b"(lp0\n.", None, "r.json", "no JSON object"),
        ({"images": []}, None, "r.json", "the keys images"), ({"annotations": []}, None, "r.json", "the keys annotations"),
        ({"images": {}, "annotations": []}, None, "r.json", "no list under `images`"),
        (questions, {"questions": []}, "a.json", "the keys questions"), (annotations, annotations, "r.json", "the keys annotations"),
        ({"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 1, 1]}]}, None, "r.json", "objects with boxes"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "segments_info": []}]}, None, "r.json", "panoptic"),
        ({"info": {}, "images": [], "categories": []}, None, "r.json", "of a test set"), (questions, None, "r.json", "VQA's questions"),
        ({"data": []}, None, "r.json", "TextVQA"), ([{"question_id": "x", "choices": [], "direct_answers": []}], None, "r.json", "A-OKVQA"),
        ([{"id": 1, "regions": []}], None, "r.json", "Visual Genome"), ([{"id": 1, "qas": []}], annotations, "r.json", "Visual Genome"),
        ([{"ref_id": 1, "sentences": []}], None, "r.json", "RefCOCO"), ([{"image": "a", "question": "b", "answers": []}], annotations, "r.json", "VizWiz"),
        ([{"id": 1, "conversations": []}], None, "r.json", "`llava`"), (questions, coco(), "a.json", "captions under `annotations`"),
        ({f"{n:09}": {"question": "?"} for n in range(30_000)}, annotations, "r.json", "the keys 000000000, 000000001"),
    ):  # fmt: skip
        with within(2), pytest.raises(UserError) as error:
            opened(folder, value, other)
        (problem,) = error.value.problems
        assert (problem.code, problem.where) == (
            "records/official-file",
            str(folder / file),
        ) and word in problem.got
        assert "COCO" in problem.hint


def test_all_files_of_another_form_are_named_at_once(folder):
    questions, annotations = vqa()
    with pytest.raises(UserError) as error:
        opened(folder, annotations, questions)  # exchanged
    assert [(p.code, p.where, p.got.rpartition(": ")[2]) for p in error.value.problems] == [
        ("records/official-file", str(folder / "r.json"), "VQA's annotations"),
        ("records/official-file", str(folder / "a.json"), "VQA's questions"),
    ]
    (folder / "r.json").unlink()
    (folder / "a.json").unlink()
    (folder / "images").rmdir()
    with pytest.raises(UserError) as error:
        reopened(folder, official="vqa")
    assert [p.code for p in error.value.problems] == ["records/no-image-folder", *["records/file"] * 2]
    for name in ("images", "q-1.json", "q-2.json"):
        (folder / name).mkdir()
    with pytest.raises(UserError) as error:
        named(folder, "q-*.json", annotations="none-*.json")
    assert [p.where.rpartition("/")[2] for p in error.value.problems] == [
        "q-1.json",
        "q-2.json",
        "none-*.json",
    ]


def test_a_file_cut_anywhere_is_refused_with_its_name(folder):
    """Cuts each file at many places: each cut is a problem of the file or of an entry, and is named once."""
    questions, annotations = vqa()
    whole = json.dumps(coco()).encode(), json.dumps(questions).encode(), json.dumps(annotations).encode()
    for which, data in enumerate(whole):
        for end in range(1, len(data), 7):
            values = [data[:end], None] if which == 0 else [whole[1], whole[2]]
            values[max(0, which - 1)] = data[:end]
            with within(2), pytest.raises(UserError) as error:
                opened(folder, *values)
            assert all(str(folder) in p.where and p.hint for p in error.value.problems)
            broken = [p for p in error.value.problems if p.code in ("records/json", "records/official-file")]
            assert len(broken) == 1, (end, broken)


@pytest.mark.parametrize("official", ["coco", "vqa"])
def test_junk_entries_are_read_or_refused_by_name(folder, official):
    """Opens 12 data sets of 30 records with junk in every second entry. Each record is good or has a problem."""
    rng, good, refused = random.Random(3), 0, 0

    def junk(entries):
        return [mutate(rng, entry) if rng.random() < 0.5 else entry for entry in entries]

    for _ in range(12):
        ids = range(30)
        value = {"images": junk([{"id": i, "file_name": f"{i:012}.jpg", "height": 3} for i in ids]),
                 "annotations": junk([{"id": i, "image_id": i, "caption": f"A {i}."} for i in ids])}  # fmt: skip
        annotations = None
        if official == "vqa":
            value = {"questions": junk([{"question_id": i, "image_id": i, "question": f"{i}?"} for i in ids])}
            annotations = [
                {"question_id": i, "image_id": i, "multiple_choice_answer": "a", "answers": answers("a", "b")}
                for i in ids
            ]
            annotations = {"data_subtype": "val2014", "annotations": junk(annotations)}
        try:
            with within(5):
                records = opened(folder, value, annotations, bad_records=Policy("skip", 1.0))
        except UserError as error:
            assert all(
                p.code in ("records/official-file", "records/empty") and p.hint for p in error.problems
            )
            continue
        assert all(bad.code.startswith("records/") and bad.got and bad.hint for bad in records.known_bad)
        asked = value["annotations" if official == "coco" else "questions"]
        numbers = {records.place(i)[2] for i in range(len(records))}
        assert numbers | {bad.record for bad in records.known_bad} >= set(range(len(asked)))
        for sample, number in zip(records, sorted(numbers), strict=True):
            text = asked[number]["caption" if official == "coco" else "question"]
            turn = sample.turns[1 if official == "coco" else 0].text
            assert len(sample.images) == 1
            assert (
                turn.partition("\n")[0] == text.strip().partition("\n")[0] or text == "<image>"
            )  # its image
        good, refused = good + len(numbers), refused + records.left_out
    assert min(good, refused) > 40


def test_other_lists_may_be_longer_than_a_record(folder, monkeypatch):
    monkeypatch.setattr("lmmkit.data.sources.json_stream.MAX_RECORD", 1000)
    monkeypatch.setattr("lmmkit.data.sources.json_stream._BLOCK", 100)
    value = coco([(n, n // 5, "A cat.") for n in range(200)], range(40))
    for keys in (list(value), list(value)[::-1]):
        records = opened(folder, {key: value[key] for key in keys})
        assert [sample.images[0].path[-7:-4] for sample in records] == [f"{n // 5:03}" for n in range(200)]
    records = opened(folder, value | {"licenses": [1] * 999 + [float("nan")]}, bad_records=Policy("skip"))
    assert len(records) == 200 and [(bad.code, bad.got) for bad in records.known_bad] == [
        ("records/json", "NaN")
    ]
    questions, annotations = vqa()
    text = json.dumps(annotations).encode().replace(b'"val2014"', b'"\xffal2014"')
    with pytest.raises(UserError) as error:
        opened(folder, questions, text)
    assert error.value.problems[0].code == "records/json" and "0xff" in error.value.problems[0].got


def test_keys_twice_and_text_after_the_object_are_named(folder):
    text = json.dumps(coco())
    for data in (text + "x", text[:-1] + ', "info": 1}', text[:-1] + ", }", text[:-1] + ", 5: 1}"):
        with pytest.raises(UserError) as error:
            opened(folder, data.encode())
        assert [p.code for p in error.value.problems] == ["records/json"]


def test_a_byte_that_is_no_utf8_is_a_fault_of_its_entry(folder):
    text = json.dumps(coco(), ensure_ascii=False).encode()
    records = opened(folder, text.replace(b"A cat.", b"A c\xe4t."), bad_records=Policy("skip"))
    assert [sample.turns[1].text for sample in records] == ["Two d\u00f6gs.", "A \u732b."]
    assert [(bad.code, "0xe4" in bad.got) for bad in records.known_bad] == [("records/json", True)]
    records = opened(folder, text.replace(b"a/001", b"a/\xff"), bad_records=Policy("skip"))
    assert len(records) == 1 and [bad.code for bad in records.known_bad] == [
        "records/json",
        *["records/official-entry"] * 2,
    ]
    for place in (b'"info"', b'"year"'):
        with pytest.raises(UserError) as error:
            opened(folder, text.replace(place, b'"\xff"'))
        assert [p.code for p in error.value.problems] == ["records/json"] and "0xff" in error.value.problems[
            0
        ].got


def test_a_changed_file_stops_a_reader_and_changes_the_identity(folder):
    questions, annotations = vqa()
    records = opened(folder, questions, annotations)
    before = records.identity()
    assert reopened(folder, official="vqa").identity() == before
    annotations["annotations"][1]["multiple_choice_answer"] = "elephant"
    (folder / "a.json").write_text(json.dumps(annotations))
    with pytest.raises(UserError) as error:
        records[0]
    assert error.value.problems[0].code == "records/changed"
    assert reopened(folder, official="vqa").identity()["annotations"] != before["annotations"]
    assert reopened(folder, official="vqa")[0].turns[1].text == "elephant"


def test_batches_are_those_of_the_same_records_in_llava_s_form(tiny, scenes, tmp_path):
    values = json.loads((scenes / "pretrain.json").read_text())
    images = {each["image"]: n for n, each in enumerate(values)}
    official = {
        "annotations": [
            {
                "id": each["id"],
                "image_id": images[each["image"]],
                "caption": each["conversations"][1]["value"],
            }
            for each in values
        ],
        "images": [{"id": n, "file_name": name} for name, n in images.items()],
    }
    (tmp_path / "c.json").write_text(json.dumps(official))
    line = "captions:  {kind: llava, records: pretrain.json, "
    assert line in PLAIN
    changed = PLAIN.replace(line, f"captions: {{kind: coco, records: {tmp_path}/c.json, ")
    ours, theirs = (prepare(tiny(text=recipe)).pipeline("pretrain").step(3) for recipe in (changed, PLAIN))
    for a, b in zip(ours, theirs, strict=True):
        assert (a.id_T == b.id_T).all() and (a.pixels_ICXY == b.pixels_ICXY).all()
