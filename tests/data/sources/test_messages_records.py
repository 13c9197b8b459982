"""Records of kind `messages`: the samples of the same conversations in LLaVA's form, and faults by name."""

import base64
import json
import pickle
from pathlib import Path

import pytest

from lmmkit.api.sample import Turn
from lmmkit.data.sources.bad_records import Policy
from lmmkit.data.sources.json_records import RawRecord
from lmmkit.data.sources.messages_records import as_llava
from lmmkit.data.sources.records import open_records
from lmmkit.errors import UserError
from lmmkit.plan.prepare import prepare
from tests.conftest import PLAIN


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LMMKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    return tmp_path


def opened(folder, values, *, name="r.json", columns=None, kind="messages", template="vicuna_v1", **options):
    lines = name.endswith(".jsonl")
    (folder / name).write_text("".join(json.dumps(v) + "\n" for v in values) if lines else json.dumps(values))
    columns = (columns or {}) if kind == "messages" else None
    return open_records(
        "set", records=folder / name, images=folder / "images", template=template, image_fit="pad", columns=columns,
        **options,
    )  # fmt: skip


def problems(folder, values, **options):
    with pytest.raises(UserError) as error:
        opened(folder, values, **options)
    return error.value.problems


def image(path=None, **more):
    return {"type": "image"} | ({"image": path} if path else {}) | more


def text(words):
    return {"type": "text", "text": words}


def asked(*content, answer="A.", **more):
    return {
        "messages": [{"role": "user", "content": list(content)}, {"role": "assistant", "content": answer}]
    } | more


def llava(*texts, image=None, **more):
    turns = [{"from": ("human", "gpt")[i % 2], "value": each} for i, each in enumerate(texts)]
    return {"conversations": turns} | ({} if image is None else {"image": image}) | more


# Each record of kind messages, and what the same conversation is in LLaVA's form.
PAIRS = [
    (asked(text("Hi")), llava("Hi", "A.")),
    (asked("Hi", answer=[text("A"), text(".")]), llava("Hi", "A.")),
    (asked(image("a.png"), text("What?")), llava("<image>What?", "A.", image="a.png")),
    (asked(image(image_url="a.png"), text("What?")), llava("<image>What?", "A.", image="a.png")),
    (asked({"type": "image_url", "image_url": {"url": "a/b.png"}}, text("What?")), llava("<image>What?", "A.", image="a/b.png")),
    (asked(image(), text("What?"), images=["a.png"]), llava("<image>What?", "A.", image="a.png")),
    (asked(image(), text("What?"), image="a.png"), llava("<image>What?", "A.", image="a.png")),
    (asked(text("Before: "), image("a.png"), text(" After: "), image("b.png"), text("?")),
     llava("Before: <image> After: <image>?", "A.", image=["a.png", "b.png"])),
    (asked(image(index=1), image(index=0), text("?"), images=["a.png", "b.png"]), llava("<image><image>?", "A.", image=["b.png", "a.png"])),
    (asked(image(index=0), image(index=0), text("?"), images=["a.png"]), llava("<image><image>?", "A.", image=["a.png", "a.png"])),
    (asked({"type": "text", "text": "<image>\nWhat?", "index": None, "image": None}, images=["a.png"]), llava("<image>\nWhat?", "A.", image="a.png")),
    (llava("<image>\nWhat?", "A.", image=["a.png"]), llava("<image>\nWhat?", "A.", image="a.png")),
    (llava("What?", "A.", images=["a.png"], id=5), llava("What?", "A.", images=["a.png"], id=5)),
    ({"messages": llava("x <image> y", "A.")["conversations"], "images": ["a"]}, llava("x <image> y", "A.", image="a")),
    ({"messages": [{"role": "system", "content": [text("Be kind.")]}, *asked("Hi")["messages"]], "score": 0.5},
     {"conversations": [{"from": "system", "value": "Be kind."}, *llava("Hi", "A.")["conversations"]], "score": 0.5}),
    (asked("Hi", system="Be brief.") | {"images": None, "id": "x"}, llava("Hi", "A.", system="Be brief.", id="x")),
    ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A.", "weight": 0, "tool_calls": None}]},
     {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "A.", "weight": 0}]}),
]  # fmt: skip


@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
def test_samples_are_those_of_the_same_conversations_in_llava_s_form(folder, name):
    ours = pickle.loads(pickle.dumps(opened(folder, [ours for ours, _ in PAIRS], name=name)))
    theirs = opened(folder, [theirs for _, theirs in PAIRS], name="llava" + name, kind="llava")
    assert len(ours) == len(theirs) == len(PAIRS)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a == b, PAIRS[i]
    assert ours.words_N.tolist() == theirs.words_N.tolist() and ours.systems == theirs.systems == 2
    assert ours[6].turns == (Turn("user", "What?", 1), Turn("assistant", "A."))
    assert ours[7].turns[0] == Turn("user", "Before:  After: ?", 2, (8, 16))


def test_columns_are_mapped(folder):
    record = {
        "talk": asked(image(), text("What?"))["messages"],
        "photo": "a.png",
        "rules": "Be brief.",
        "key": 7,
        "image": "z",
        "n": 3,
    }
    columns = {"messages": "talk", "images": "photo", "system": "rules", "id": "key"}
    records = opened(folder, [record], columns=columns)
    (sample,) = records
    assert (sample.key, sample.system, sample.meta) == ("set:7", "Be brief.", {"n": 3})
    assert [image.path for image in sample.images] == [str(folder / "images" / "a.png")]
    assert records.notes == {"`image` is not read: `columns` names another one": 1}
    (found,) = problems(folder, [record])
    assert (
        found.code == "records/columns"
        and "`talk`, `photo`" in found.got
        and found.where.endswith(":1 (record 0)")
    )


def test_other_columns_have_another_index(folder):
    record = {"a": asked("Hi")["messages"], "b": asked("Ho")["messages"]}
    for column, words in (("a", "Hi"), ("b", "Ho"), ("a", "Hi")):
        assert opened(folder, [record], columns={"messages": column})[0].turns[0].text == words


WRONG = [
    ({"chat": []}, "records/columns", "", "`chat`"),
    ({}, "records/columns", "", "no column"),
    (asked("Hi") | llava("Hi", "A."), "records/columns", "", "`messages` and `conversations`"),
    (asked("Hi", images=["a"], image="a"), "records/columns", "", "`images` and `image`"),
    ({"messages": "Hi"}, "records/no-conversation", "messages", "'Hi'"),
    ({"messages": []}, "records/no-conversation", "messages", "`messages` none"),
    ({"messages": asked("Hi")["messages"][::-1]}, "records/no-answer", "messages", "without an answer"),
    ({"messages": [*asked("Hi")["messages"][:1] * 2, *asked("Hi")["messages"][1:]]}, "records/turn-order", "messages.1", "user again"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "records/role", "messages.0.role", "'tool'"),
    ({"messages": ["Hi", *asked("Hi")["messages"]], "image": "a"}, "records/wrong-type", "messages.0", "'Hi'"),
    ({"messages": [*asked("Hi")["messages"], 7], "images": ["a"]}, "records/wrong-type", "messages.2", "a number"),
    ({"messages": [{"content": "x"}]}, "records/role", "messages.0.from", "null"),
    ({"messages": [{"role": "user", "from": "human", "content": "x"}]}, "records/columns", "messages.0", "`role` and `from`"),
    (asked(3), "records/wrong-type", "messages.0.content.0", "a number"),
    (asked({"type": "text"}), "records/wrong-type", "messages.0.content.0.text", "null"),
    (asked({"type": "document", "text": "x"}), "records/content-part", "messages.0.content.0.type", "'document'"),
    (asked({"type": "video", "video": "x.mp4"}), "records/video-or-audio", "messages.0.content.0.type", "'video'"),
    (asked(image(["a"]), "x"), "records/content-part", "messages.0.content.0", "a list"),
    (asked(image("a", url="b"), "x"), "records/content-part", "messages.0.content.0", "several"),
    (asked(image(), "x"), "records/image-markers", "messages.0", "image 0 of 0"),
    (asked(image(index=2), "x", images=["a", "b"]), "records/image-markers", "messages.0", "image 2 of 2"),
    (asked(image(), "x", images=["a", "b"]), "records/image-markers", "messages", "2 images, of which 1 without a place"),
    (asked(image("a"), "x <image>"), "records/image-markers", "messages.0.content.1.text", "<image>"),
    (asked("x", answer=[image("a")]), "records/image-markers", "messages.1.content.0", "no question"),
    (asked(image("http://x/y.png"), "x"), "records/image-path", "image", "URL"),
    (asked(image("../y.png"), "x"), "records/image-path", "image", "goes up"),
    (asked(image("a"), answer=" "), "records/no-answer", "messages.1", "empty"),
    (asked("x <image>"), "records/image-markers", "messages", "0 images for 1"),
    (asked(image(), "x", images=[None]), "records/wrong-type", "images", "`images` null"),
    (asked(image(), "x", images=[["a.png"]]), "records/wrong-type", "images", "`images` is a list"),
    (asked("<image>", images=[["a.png"]]), "records/wrong-type", "images", "`images` is a list"),
    (asked(image(), "x", images=[{}]), "records/wrong-type", "images", "`images` is an object"),
    ({"messages": [{"role": "user", "content": {}}]}, "records/wrong-type", "messages.0.content", "turn 0 content is"),
    (asked("Hi", id=[1]), "records/wrong-type", "id", "a list"),
    ([1], "records/wrong-type", "", "a list"),
]  # fmt: skip


def test_each_fault_is_named_with_file_record_and_part(folder):
    records = opened(folder, [asked("Hi"), *(value for value, *_ in WRONG)], bad_records=Policy("skip", 0.99))
    found = {}
    for bad in records.known_bad:
        found.setdefault(bad.record, []).append((bad.code, bad.key, bad.got))
    for i, (value, code, part, word) in enumerate(WRONG, 1):
        assert any(c == code and p.startswith(part) and word in got for c, p, got in found[i]), (
            value,
            found.get(i),
        )
    assert len(records) == 1 and len(found) == len(WRONG)
    assert all(bad.file.endswith("r.json") and bad.expected and bad.hint for bad in records.known_bad)


def test_what_is_not_read_is_counted(folder):
    url = {"type": "image_url", "image_url": {"url": "a", "detail": "low"}}
    records = opened(folder, [asked(url, {"type": "text", "text": "x", "cache_control": {}}, tools=[1])])
    assert set(records.notes) == {
        "`detail` of a content part is not read", "`cache_control` of a content part is not read", "`tools` is not read",
    }  # fmt: skip


def test_a_part_names_its_image_once(folder):
    inner = {"type": "image_url", "image_url": {"url": None, "path": "a", "detail": None}}
    twice = {"type": "image_url", "image_url": {"url": "b", "path": "c"}}
    records = opened(folder, [asked(inner, "x"), asked(twice, "x"), asked(image("d", index=3), "x")])
    assert [Path(sample.images[0].path).name for sample in records] == ["a", "b", "d"]
    assert records.notes == {
        "`index` of a content part is not read": 1, "`path` of a content part is not read": 1,
    }  # fmt: skip


def test_a_column_that_records_do_not_have_is_counted(folder):
    records = opened(
        folder, [asked("x", rules="Be brief."), asked("x", rule=None)], columns={"system": "rule"}
    )
    assert records.systems == 0 and records.notes == {"no column `rule`, which `columns` names": 1}


def test_a_record_with_faults_is_left_as_it_is():
    for raw in (RawRecord(0, 1, faults=(("a", "b"),)), RawRecord(0, 1, [1])):
        assert as_llava(raw, {}) is raw


def test_batches_are_those_of_the_same_records_in_llava_s_form(tiny, scenes, tmp_path):
    values = json.loads((scenes / "finetune.json").read_text())
    with open(tmp_path / "m.jsonl", "w") as file:
        for n, each in enumerate(values):
            data = base64.b64encode((scenes / each["image"]).read_bytes()).decode()
            photo = (
                f"data:image/png;base64,{data}" if n % 2 else each["image"]
            )  # one image, in the record or not
            turns = [
                {"role": {"human": "user", "gpt": "assistant"}[turn["from"]],
                 "content": [image() if part == "<image>" else text(part) for part in turn["value"].partition("<image>") if part]}
                for turn in each["conversations"]
            ]  # fmt: skip
            file.write(json.dumps({"id": each["id"], "asked": turns, "photo": [photo]}) + "\n")
    line = "questions: {kind: llava, records: finetune.json, "
    mapped = f"questions: {{kind: messages, columns: {{messages: asked, images: photo}}, records: {tmp_path}/m.jsonl, "
    assert line in PLAIN
    ours, theirs = (
        prepare(tiny(text=recipe)).pipeline("finetune").step(3)
        for recipe in (PLAIN.replace(line, mapped), PLAIN)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.views == b.views and (a.id_T == b.id_T).all() and (a.pixels_ICXY == b.pixels_ICXY).all()


def test_a_key_without_a_name_is_another_key(folder):
    """Reads the key that csv gives to a column of numbers: it is neither the images nor the turns."""
    (sample,) = opened(folder, [asked(text("Hi")) | {"": 7}])
    assert (sample.images, sample.meta) == ((), {"": 7})
    (found,) = problems(folder, [{"": asked()["messages"]}])
    assert found.code == "records/columns"


@pytest.mark.parametrize("kind", ["messages", "llava"])
def test_the_weight_of_a_system_prompt_is_checked(folder, kind):
    role, content, turns = (
        ("from", "value", "conversations") if kind == "llava" else ("role", "content", "messages")
    )
    users = ("human", "gpt") if kind == "llava" else ("user", "assistant")
    rest = [{role: who, content: "x"} for who in users]
    for key, value in (("weight", "high"), ("train", [1]), ("loss", {"a": 1}), ("weight", 2)):
        (found,) = problems(folder, [{turns: [{role: "system", content: "S", key: value}, *rest]}], kind=kind)
        assert found.code == "records/turn-weight" and f"turn 0 `{key}`" in found.got
    for value, notes in ((0, {}), (None, {}), (True, {"`weight` of a system prompt is not read": 1})):
        records = opened(
            folder, [{turns: [{role: "system", content: "S", "weight": value}, *rest]}], kind=kind
        )
        assert records[0].system == "S" and records.notes == notes
