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
        ({"images": []}, None, "r.json", "the keys images"), ({"annotations": []}, None, "r.json", "the keys annotations"),
        ({"images": {}, "annotations": []}, None, "r.json", "no list under `images`"),
        (questions, {"questions": []}, "a.json", "the keys questions"), (annotations, annotations, "r.json", "the keys annotations"),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            opened(folder, value, other)
        (problem,) = error.value.problems
        assert (problem.code, problem.where) == ("records/file", str(folder / file)) and word in problem.got


def test_a_file_cut_anywhere_is_refused_with_its_name(folder):
    """Cuts each file at many places: each cut is a problem of the file or of an entry, and is named once."""
    questions, annotations = vqa()
    whole = json.dumps(coco()).encode(), json.dumps(questions).encode(), json.dumps(annotations).encode()
    for which, data in enumerate(whole):
        for end in range(1, len(data), 5):
            values = [data[:end], None] if which == 0 else [whole[1], whole[2]]
            values[max(0, which - 1)] = data[:end]
            with within(2), pytest.raises(UserError) as error:
                opened(folder, *values)
            assert all(str(folder) in p.where and p.hint for p in error.value.problems)
            broken = [p for p in error.value.problems if p.code in ("records/json", "records/file")]
            assert len(broken) == 1, (end, broken)


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
    assert reopened(folder, official="vqa").identity()["records"] != before["records"]
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
