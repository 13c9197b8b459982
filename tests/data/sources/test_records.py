"""Records: good ones as LLaVA reads them, and each bad one a problem with file, line and record."""

import gzip
import json
import os
import pickle
import random
from pathlib import Path

import pytest
from PIL import Image as Pil

from lmmkit.api.sample import Image, Turn
from lmmkit.data.sources.bad_records import Policy
from lmmkit.data.sources.records import check_images, missing_images, open_records
from lmmkit.errors import UserError

HUMAN, GPT = {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}
GOOD = {"id": "7", "image": "a.png", "conversations": [HUMAN, GPT]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path


def read(folder, values, *, name="r.json", template="vicuna_v1"):
    """Opens `values`: bytes and text as they are, else as JSON."""
    path = folder / name
    if isinstance(values, bytes):
        path.write_bytes(values)
    else:
        path.write_text(values if isinstance(values, str) else json.dumps(values))
    return open_records("set", records=path, images=folder / "images", template=template, image_fit="pad")


def problems(folder, values, **options):
    with pytest.raises(UserError) as error:
        read(folder, values, **options)
    return error.value.problems


def conversation(*texts, image="a.png"):
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"conversations": turns} | ({"image": image} if image is not None else {})


@pytest.mark.parametrize("columns", [None, {}])
def test_a_pattern_names_several_files(folder, columns):
    """Compares JSONL in three files with one file of the same records, and names the faults of each file."""

    def named(name, images="images", **options):
        return open_records(
            "set", records=folder / name, images=folder / images, template="vicuna_v1", image_fit="pad",
            columns=columns, **options,
        )  # fmt: skip

    values = [conversation(f"<image>{n}", "A.", image=f"{n % 4}.png") | {"id": n % 5} for n in range(9)]
    lines = [json.dumps(value) + "\n" for value in values]
    for name, part in (("one", lines), ("r-1", lines[:4]), ("r-2", []), ("r-3", ["\n", *lines[4:]])):
        (folder / f"{name}.jsonl").write_text("".join(part))
    records, whole = pickle.loads(pickle.dumps(named("r-?.jsonl"))), named("one.jsonl")
    assert list(records) == list(whole) and len({sample.key for sample in whole}) == 9
    assert (
        missing_images(records)[3].where == f"{folder / 'r-1.jsonl'}:4 (record 3)"
        and len(missing_images(records)) == 4
    )
    assert records.where(5) == f"{folder / 'r-3.jsonl'}:3 (record 5)"
    before = records.identity()
    (folder / "r-2.jsonl").write_text("{}\n" + lines[0] + '{"id"')
    with pytest.raises(UserError) as error:
        named("r-*.jsonl")
    assert {p.where.rpartition("/")[2] for p in error.value.problems} == {
        "r-2.jsonl:1 (record 4)",
        "r-2.jsonl:3 (record 6)",
    }
    found = named("r-*.jsonl", bad_records=Policy("skip"))
    assert [found.place(i)[2] for i in range(len(found))] == [0, 1, 2, 3, 5, 7, 8, 9, 10, 11]
    assert found.identity()["records"] != before["records"]
    for name in ("r-1.jsonl", "r-3.jsonl"):
        (folder / name).write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        named("r-*.jsonl")
    assert [(p.code, p.where) for p in error.value.problems] == [
        ("records/file", str(folder / f"r-{n}.jsonl")) for n in (1, 3)
    ]
    with pytest.raises(UserError) as error:
        named("none-*.jsonl", "nowhere")
    assert [p.code for p in error.value.problems] == ["records/no-image-folder", "records/file"]
    (folder / "r-4.jsonl").mkdir()
    (folder / "r-1.jsonl").rename(folder / "r-5.jsonl")
    (folder / "r-6.jsonl").symlink_to(folder / "r-5.jsonl")
    for name, word in (
        ("r-[2-4].jsonl", "no regular file"),
        ("r-[56].jsonl", "one file"),
        ("a\0/*.jsonl", "no such file"),
    ):
        with pytest.raises(UserError) as error:
            named(name)
        (problem,) = error.value.problems
        assert problem.code == "records/file" and word in problem.got


def test_a_record(folder):
    records = read(folder, [GOOD | {"kind": "short", "hops": 2, "model": "", "list": [1], "nested": [[1]]}])
    assert len(records) == 1
    sample = records[0]
    assert sample.key == "set:7"
    assert sample.turns == (Turn("user", "What?", 1), Turn("assistant", "A cat."))
    assert sample.images == (Image(str(folder / "images" / "a.png")),)
    assert (sample.template, sample.image_fit) == ("vicuna_v1", "pad")
    assert sample.meta == {"kind": "short", "hops": 2, "model": "", "list": (1,)}
    assert [s.key for s in records] == ["set:7"]
    with pytest.raises(IndexError):
        records[1]


def test_jsonl_is_the_same(folder):
    values = [GOOD, GOOD | {"id": 8}, conversation("Hi", "Hello", image=None)]
    as_list = read(folder, values)
    lines = "\n".join(map(json.dumps, values)) + "\n"
    assert list(read(folder, lines, name="r.jsonl")) == list(as_list)
    assert [s.key for s in as_list] == ["set:7", "set:8", "set:2"]
    assert as_list[2].images == ()
    assert as_list[2].turns[0] == Turn("user", "Hi")


def test_keys_stay_apart(folder):
    records = read(folder, [GOOD, GOOD, GOOD | {"id": "3"}, GOOD | {"id": None}, GOOD | {"id": 7}])
    assert [s.key for s in records] == ["set:7", "set:7#1", "set:3", "set:3#3", "set:7#4"]


@pytest.mark.parametrize(
    ("texts", "image", "placed"),
    [
        (["What? <image>", "A"], "a.png", [("What?", 1), ("A", 0)]),
        (["<image> x <image>", "A"], "a.png", [("x", 1), ("A", 0)]),
        (["<image>", "A"], ["a.png"], [("", 1), ("A", 0)]),
        (["<image><image> x", "A"], ["a.png", "b.png"], [("x", 2), ("A", 0)]),
        (["<image>", "A", " y <image>", "B"], ["a", "b"], [("", 1), ("A", 0), ("y", 1), ("B", 0)]),
        ([" x ", "A", "<image> y ", "B"], "a", [(" x ", 0), ("A", 0), ("y", 1), ("B", 0)]),
        ([" x ", "<image> is a tag "], None, [(" x ", 0), ("<image> is a tag ", 0)]),
    ],
)
def test_markers(folder, texts, image, placed):
    sample = read(folder, [conversation(*texts, image=image)])[0]
    assert [(turn.text, turn.images) for turn in sample.turns] == placed
    assert not any(turn.places for turn in sample.turns)


def test_markers_inside_a_text_keep_their_places(folder):
    texts = ["First <image>, then\n<image>: more?", "A", "And <image> here", "B"]
    sample = read(folder, [conversation(*texts, image=["a", "b", "c"])])[0]
    assert sample.turns == (
        Turn("user", "First , then\n: more?", 2, (6, 13)), Turn("assistant", "A"),
        Turn("user", "And  here", 1, (4,)), Turn("assistant", "B"),
    )  # fmt: skip
    assert [Path(image.path).name for image in sample.images] == ["a", "b", "c"]


def test_images_is_read_like_image(folder):
    for value in ("a.png", ["a.png"]):
        record = {key: item for key, item in GOOD.items() if key != "image"} | {"images": value}
        assert list(read(folder, [record])) == list(read(folder, [GOOD])), value
        assert list(read(folder, [record | {"image": None}])) == list(read(folder, [GOOD]))
        assert list(read(folder, [GOOD | {"images": value}])) == list(read(folder, [GOOD]))
    two = read(folder, [conversation("<image><image> x", "A", image=None) | {"images": ["a.png", "b.png"]}])[
        0
    ]
    assert [Path(image.path).name for image in two.images] == ["a.png", "b.png"]
    unmarked = {"images": ["a.png", "b.png"], "conversations": [HUMAN | {"value": "What? "}, GPT]}
    records = read(folder, [unmarked])
    assert records[0].turns[0] == Turn("user", "What?", 2) and len(records[0].images) == 2
    assert records.notes == {"images without <image> are put before the first question": 1}
    assert read(folder, [conversation("x", "A", image=None) | {"images": []}])[0].images == ()


@pytest.mark.parametrize("extra", [{}, {"images": ["a.png"], "image": None}], ids=["simple", "checked"])
def test_other_keys_keep_numbers_and_flat_lists_and_name_what_they_lose(folder, extra):
    kept = {
        "box": [0.1, 0.2, 0.5, 1],
        "many": [7] * 64,
        "names": ["a", "b"],
        "none": [],
        "yes": True,
        "null": None,
    }
    lost = {
        "boxes": [[0, 0, 1, 1]],
        "long": [7] * 65,
        "info": {"a": 1},
        "mixed": [1, "a"],
        "holes": [1, None],
    }
    records = read(folder, [GOOD | kept | lost | extra, GOOD | {"info": {}, "x" * 60: {}} | extra])
    meta = {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}
    assert records[0].meta == {key: value for key, value in meta.items() if value is not None}
    assert records[1].meta == {}
    why = "is not kept: it is no text, number, or list of texts or of at most 64 numbers"
    notes = {f"`{key}` {why}": 1 for key in lost} | {f"`info` {why}": 2, f"`{'x' * 40}` {why}": 1}
    assert records.notes == notes


def test_an_index_counts_a_hundred_notes_apart(folder):
    records = read(folder, [GOOD | {f"key{i}": {}} for i in range(150)])
    assert len(records.notes) == 101 and records.notes["further notes"] == 50


@pytest.mark.parametrize(
    ("keys", "first"),
    [
        ({"system": "Answer in Dutch."}, []),
        ({}, [{"from": "system", "value": "Answer in Dutch."}]),
        ({}, [{"role": "system", "content": "Answer in Dutch."}]),
        ({"system": "Answer in Dutch."}, [{"from": "system", "value": "Answer in Dutch."}]),
        ({"system": None}, [{"from": "system", "value": "Answer in Dutch."}, GPT]),
    ],
)
def test_a_system_prompt_of_a_record(folder, keys, first):
    records = read(
        folder, [GOOD | keys | {"conversations": [*first, HUMAN, GPT]}, GOOD | {"system": " "}, GOOD]
    )
    assert [sample.system for sample in records] == ["Answer in Dutch.", "", ""]
    assert records[0].turns == records[2].turns and records.systems == 1
    assert "system" not in records[0].meta
    code = problems(folder, [GOOD | keys | {"conversations": [*first, HUMAN, GPT]}], template="plain")[0].code
    assert code == "records/plain"


@pytest.mark.parametrize(
    ("keys", "supervised"),
    [
        ({"weight": 0}, False), ({"weight": 0.0}, False), ({"loss": False}, False), ({"train": False}, False),
        ({"weight": 1}, True), ({"weight": 1.0, "loss": True, "train": None}, True),
        ({"weight": 1, "loss": False}, False),
    ],
)  # fmt: skip
def test_a_turn_of_weight_0_is_not_supervised(folder, keys, supervised):
    again = [{"from": "human", "value": "Sure?", "weight": 0}, {"from": "gpt", "value": "Yes."}]
    records = read(folder, [GOOD | {"conversations": [HUMAN, GPT | keys, *again]}])
    assert [turn.supervised for turn in records[0].turns] == [True, supervised, True, True]
    assert records.notes == {}


def test_what_is_not_read_is_counted(folder):
    blind = conversation("x", "A", image=None)
    records = read(folder, [
        GOOD | {"tools": [{"name": "f"}], "weight": 0.5, "type": "short"}, GOOD | {"tools": "f", "objects": {}},
        blind | {"image_path": "a.png"}, GOOD | {"image_path": "a.png"}, GOOD | {"conversations": [GPT, HUMAN, GPT]},
        GOOD | {"conversations": [HUMAN | {"weight": 1}, GPT | {"loss_scale": 3}]},
        conversation("<image> x <image>", "A"), GOOD | {"weight": 1},
    ])  # fmt: skip
    assert records.notes == {
        "`tools` is not read": 2, "`weight` is not read": 1, "`image_path` is not read": 1,
        "an answer before any question is left out": 1, "`weight` of a question is not read": 1,
        "`loss_scale` of a turn is not read": 1, "several <image> of a question mean its only image": 1,
    }  # fmt: skip


def test_plain_leaves_the_question_out(folder):
    sample = read(folder, [conversation("Describe it.\n<image>", "A cat.")], template="plain")[0]
    assert sample.turns == (Turn("user", "", 1), Turn("assistant", "A cat."))
    for value in conversation("x", "A", image=None), conversation("<image>", "A", "x", "B"):
        assert problems(folder, [value], template="plain")[0].code == "records/plain"


def test_a_leading_answer_is_dropped_and_counted(folder):
    value = GOOD | {"conversations": [GPT, HUMAN, GPT]}
    records = read(folder, [value, GOOD])
    assert records[0].turns == records[1].turns
    assert records.notes == {"an answer before any question is left out": 1}


BAD_RECORDS = {
    "wrong-type": [
        None, 3, "x", [], GOOD | {"id": 1.5}, GOOD | {"id": True}, GOOD | {"image": 3},
        GOOD | {"image": ["a.png", None]}, GOOD | {"conversations": [3]},
        GOOD | {"conversations": [{"from": "human"}, GPT]},
        GOOD | {"conversations": [HUMAN, {"from": "gpt", "value": None}]}, GOOD | {"images": [3]},
        GOOD | {"system": 3}, GOOD | {"conversations": [{"from": "system", "value": []}, HUMAN, GPT]},
    ],
    "no-conversation": [{}, {"conversations": []}, {"conversations": "x"}, GOOD | {"conversations": [GPT]}],
    "from": [
        GOOD | {"conversations": [HUMAN, {"from": "gtp", "value": "A"}]},
        GOOD | {"conversations": [HUMAN, {"value": "A"}]},
    ],
    "system": [
        GOOD | {"conversations": [HUMAN, GPT, {"from": "system", "value": "A"}, HUMAN, GPT]},
        GOOD | {"system": "B", "conversations": [{"from": "system", "value": "A"}, HUMAN, GPT]},
    ],
    "video-or-audio": [
        GOOD | {"video": "v.mp4"}, GOOD | {"videos": ["v.mp4"]}, GOOD | {"audio": {"path": "a.wav"}},
        conversation("<video>\nWhat happens?", "A", image=None), conversation("<image> <audio>", "A"),
    ],
    "image-keys": [GOOD | {"images": ["b.png"]}, GOOD | {"images": ["a.png", "a.png"]}],
    "turn-weight": [
        GOOD | {"conversations": [HUMAN, GPT | {key: value}]}
        for key, value in (("weight", 0.5), ("weight", 2), ("loss", "0"), ("train", []), ("loss", -1))
    ],
    "other-form": [
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "A"}]},
        {"instruction": "x", "output": "A"},
        GOOD | {"conversations": [{"role": "user", "content": "<image>x"}, {"role": "assistant", "content": "A"}]},
    ],
    "no-question": [conversation("", "A", image=None), conversation("<image>", "A", " \n", "B")],
    "turn-order": [
        GOOD | {"conversations": [HUMAN, HUMAN, GPT]},
        GOOD | {"conversations": [HUMAN, GPT, GPT]},
    ],
    "no-answer": [conversation("<image>", ""), conversation("<image>", " \n"), conversation("<image>", "A", "x")],
    "image-markers": [
        conversation("x", "A"), conversation("<image>", "A", image=None), conversation("<image>", "A", image=[]),
        conversation("<image>", "A", "<image>", "B"), conversation("<image>", "A <image>"),
        conversation("<image>", "A", image=["a", "b"]),
        conversation("<image> x", "A", image=None) | {"images": ["a", "b"]},
        conversation("<image><image><image>", "A", image=["a", "b"]), GOOD | {"system": "<image> is yours"},
    ],
    "image-path": [
        GOOD | {"image": path}
        for path in (
            "", "/etc/passwd", "../a.png", "a/../../b.png", "a\\b.png", "C:/a.png", "a/", "a/.",
            "https://x.org/a.png", "file:a.png", "data:image/png;base64,AA", "a\0.png", "a\n.png",
            "x" * 300, "a/" * 600 + "a.png", "..",
        )
    ],
    "too-long": [conversation("<image>", "x" * 1_000_001)],
    "surrogate": [
        conversation("<image>", "\ud800"), GOOD | {"id": "\udc00"}, GOOD | {"image": "\ud800.png"},
        GOOD | {"kind": "\ud800"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("code", BAD_RECORDS)
def test_bad_records(folder, code):
    for value in BAD_RECORDS[code]:
        found = problems(folder, json.dumps([GOOD, value], indent=0))
        assert found[0].code == f"records/{code}", (value, found)
        assert "(record 1" in found[0].where
        assert found[0].where.startswith(f"{folder / 'r.json'}:")
        found = problems(folder, f"{json.dumps(GOOD)}\n\n{json.dumps(value)}\n", name="r.jsonl")
        assert f"{folder / 'r.jsonl'}:3 (record 1" in found[0].where


def test_all_bad_records_are_counted(folder):
    values = [GOOD | {"image": "/a"}] * 30 + [GOOD] + [GOOD | {"id": 1.5, "image": 4}]
    found = problems(folder, values)
    assert len(found) == 21
    assert found[-1].code == "records/more-problems"
    assert found[-1].got.startswith("32 problems")
    assert 'id "7"' in found[0].where or "id '7'" in found[0].where


BAD_JSON = {
    "[": 1, "": 1, "  ": 1, "[{}": 1, "[{} {}]": 1, "[\n{},\n]": 3, "[\n{}\n]\nx": 4,
    '[{"a": 1, "a": 2}]': 1, '[{"a":\nNaN}]': 1, "[-Infinity]": 1, '[{"a": 1e999}]': 1,
    '[{"a": ' + "1" * 5000 + "}]": 1, "[" * 100_000: 1, '["a\nb"]': 1, "['a']": 1, "nul": 1,
    "[]]": 1,
}  # fmt: skip


@pytest.mark.parametrize("text", BAD_JSON, ids=lambda text: text[:12])
def test_bad_json(folder, text):
    first = json.dumps(GOOD) + "," if text.startswith('[{"') else ""
    found = problems(folder, text.replace("[", "[" + first, 1))
    assert any(p.code == "records/json" for p in found), found
    at = next(p.where for p in found if p.code == "records/json")
    assert at.startswith(f"{folder / 'r.json'}:{BAD_JSON[text]} (record {1 if first else ''}")


def test_a_list_and_lines_under_the_other_s_name_are_one_problem(folder):
    good = [GOOD] * 40
    for text in (json.dumps(good), json.dumps(good, indent=1), "\n [\n" + json.dumps(GOOD) + "\n]"):
        (problem,) = problems(folder, text, name="r.jsonl")
        assert problem.code == "records/file" and "name a JSON list .json" in problem.expected
    for text in ("\n".join(map(json.dumps, good)), json.dumps({"data": good}), "{}"):
        (problem,) = problems(folder, text, name="r.json")
        assert problem.code == "records/file" and ".jsonl" in problem.expected
    path = folder / "r.jsonl"
    options = {"records": path, "images": folder / "images", "template": "vicuna_v1", "image_fit": "pad"}
    with pytest.raises(UserError) as error:
        open_records("s", **options, bad_records=Policy("skip"))
    assert [p.code for p in error.value.problems] == ["records/file"], "it is no bad record to skip"


def test_jsonl_is_read_on_after_a_broken_line(folder):
    good = json.dumps(GOOD)
    found = problems(folder, f'{good}\n{{"id"\n{good} x\n{good}\nNaN', name="r.jsonl")
    assert [p.where.split(":")[-1] for p in found] == ["2 (record 1)", "3 (record 2)", "5 (record 4)"]


def test_records_that_cannot_be_found_are_not_skipped(folder):
    good, options = (
        json.dumps(GOOD),
        {"images": folder / "images", "template": "vicuna_v1", "image_fit": "pad"},
    )
    whole = json.dumps([GOOD] * 9)
    for text, record in (
        (whole[: len(whole) // 2], 4),
        (whole[:-1], 9),
        (f"[{good}, {{'id'}}, {good}]", 1),
        (f"{whole} x", 9),
    ):
        (folder / "r.json").write_text(text)
        with pytest.raises(UserError) as error:
            open_records("s", records=folder / "r.json", **options, bad_records=Policy("skip", 1.0))
        (problem,) = error.value.problems
        assert problem.code == "records/unread" and f"(record {record})" in problem.where
        assert [p.code for p in problems(folder, text)] == ["records/json"], "and nothing twice"
    (folder / "r.jsonl").write_text(f"{good}\n{{'id'}}\n{good}\n{good[:-9]}")
    records = open_records("s", records=folder / "r.jsonl", **options, bad_records=Policy("skip", 1.0))
    assert len(records) == records.left_out == 2


@pytest.mark.parametrize(("name", "between"), [("r.json", b",\n"), ("r.jsonl", b"\n")])
def test_a_byte_that_is_no_utf8_is_a_fault_of_its_record(folder, name, between):
    good = json.dumps(GOOD | {"note": "\u732b \u00e4"}, ensure_ascii=False).encode()
    rows = [good, good.replace(b"cat", b"c\xe4t"), good, good.replace(b'"note"', b'"not\xff"'), good]
    whole = between.join(rows)
    data = b"[" + whole + b"]" if name == "r.json" else whole
    found = problems(folder, data, name=name)
    assert [p.code for p in found] == ["records/json"] * 2 and all(
        p.expected == "JSON in UTF-8" for p in found
    )
    for problem, byte, line, record in zip(found, (b"\xe4t", b"\xff"), (2, 4), (1, 3), strict=True):
        assert problem.where == f"{folder / name}:{line} (record {record})"
        assert problem.got == f"byte 0x{byte[0]:02x} at offset {data.index(byte)}, which is no UTF-8"
    options = {
        "records": folder / name,
        "images": folder / "images",
        "template": "vicuna_v1",
        "image_fit": "pad",
    }
    records = open_records("s", **options, bad_records=Policy("skip"))
    assert [sample.meta["note"] for sample in records] == ["\u732b \u00e4"] * 3 and records.left_out == 2
    for data in (b"\xff", b"[\xff]", b"[" + good + b"\xff]", good + b"\xe7", b"[" + good + b"] \xe7"):
        last = problems(folder, data, name=name)[-1]
        assert (
            last.code == "records/json" and "which is no UTF-8" in last.got
        ) or last.code == "records/file"


def test_a_source_without_a_good_record_says_why(folder):
    (folder / "r.jsonl").write_text("{}\n[]\n")
    with pytest.raises(UserError) as error:
        open_records(
            "s", records=folder / "r.jsonl", images=folder / "images", template="plain", image_fit="pad",
            bad_records=Policy("skip"),
        )  # fmt: skip
    *bad, last = error.value.problems
    assert [p.code for p in bad] == ["records/no-conversation", "records/wrong-type"]
    assert (last.code, last.got) == ("records/empty", "no good one of 2 records")


def test_bad_files(folder):
    good = json.dumps([GOOD])
    cases = [
        b"\xef\xbb\xbf" + good.encode(), good.encode("utf-16"), gzip.compress(good.encode()),
    ]  # fmt: skip
    for data in cases:
        assert [p.code for p in problems(folder, data)] == ["records/file"]
    for values, name in ([], "r.json"), ("\n\n", "r.jsonl"):
        assert problems(folder, values, name=name)[0].code == "records/empty"
    os.mkfifo(folder / "fifo")
    for path in (folder / "none", folder, folder / "fifo"):
        with pytest.raises(UserError):
            open_records("s", records=path, images=folder, template="plain", image_fit="pad")
    with pytest.raises(UserError) as error:
        open_records(
            "s",
            records=folder / "r.json",
            images=folder / "no",
            template="plain",
            image_fit="pad",
        )
    assert error.value.problems[0].code == "records/no-image-folder"


def test_links_that_lead_out(folder):
    images = folder / "images"
    (folder / "secret.png").write_bytes(b"x")
    (images / "in.png").write_bytes(b"x")
    (images / "sub").mkdir()
    (images / "file.png").symlink_to(folder / "secret.png")
    (images / "out").symlink_to(folder)
    (images / "inner.png").symlink_to(images / "in.png")
    (images / "inside").symlink_to(images / "sub")
    for path in ("file.png", "out/secret.png"):
        assert problems(folder, [GOOD | {"image": path}])[0].code == "records/image-path"
    for path in ("in.png", "inner.png", "inside/a.png", "none/a.png", "./in.png"):
        assert len(read(folder, [GOOD | {"image": path}])) == 1
    (folder / "alias").symlink_to(images)
    file = folder / "r.json"
    open_records("s", records=file, images=folder / "alias", template="plain", image_fit="pad")


def test_missing_and_bad_images(folder):
    images = folder / "images"
    Pil.new("RGB", (9, 9)).save(images / "a.png")
    (images / "text.png").write_text("hello")
    (images / "dir.png").mkdir()
    names = ["a.png", "none.png", "dir.png", "text.png", "none.png"]
    records = read(folder, [GOOD | {"image": name} for name in names])
    found = missing_images(records)
    assert [p.code for p in found] == ["records/missing-image"] * 2
    assert "(record 1)" in found[0].where
    assert str(images / "none.png") in found[0].got
    assert len(missing_images(records, limit=1)) == 1
    codes = [p.code for p in check_images(records)]
    assert codes == ["image/file", "image/file", "image/format"]
    assert len(check_images(records, limit=2)) == 2


def mutate(rng, value):
    """Returns a record with one change that may not be allowed."""
    odd = [None, True, 3, 1.5, "", "x", "\ud800", [], {}, [None], {"a": 1}, "<image>", "/x", "a\0"]
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: mutate(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        return value[:i] + [mutate(rng, value[i])] * rng.randrange(3) + value[i + 1 :]
    return rng.choice(odd)


def test_ten_thousand_mutated_records(folder):
    rng = random.Random(0)
    values = [mutate(rng, GOOD) for _ in range(10_000)]
    found = problems(folder, values)
    count = int(found[-1].got.split()[0])
    assert count > 5_000
    assert all(str(p) for p in found)


def test_mutated_bytes_never_raise_anything_else(folder):
    rng = random.Random(1)
    text = json.dumps([GOOD, conversation("<image>", "\u732b", "x", "y")]).encode()
    for _ in range(80):
        data = bytearray(text)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        for name in ("r.json", "r.jsonl"):
            try:
                read(folder, bytes(data), name=name)
            except UserError as error:
                assert error.problems
