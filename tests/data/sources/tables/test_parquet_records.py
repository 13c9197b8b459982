"""Parquet and Arrow files of kind `messages`: the samples and pixels of the same records in JSON, and faults by name."""

import io
import itertools
import json
import os
import pickle
import random
import resource
import time

import numpy as np
import pytest
import torch

from lmmkit.api.sample import Image
from lmmkit.data.image_files.image_file import read_bytes
from lmmkit.data.images import read_image
from lmmkit.data.sources.bad_records import Policy
from lmmkit.data.sources.records import check_images, missing_images, open_records
from lmmkit.data.sources.tables import parquet_records
from lmmkit.data.sources.tables.table_names import table_files
from lmmkit.data.tables.table_file import in_order, open_table
from lmmkit.errors import MachineError, UserError
from lmmkit.errors.data import TABLE_FILE
from lmmkit.plan.prepare import prepare
from tests.conftest import PLAIN
from tests.data.sources.test_messages_records import PAIRS, asked, text
from tests.data.test_images import SPEC, noisy_image

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
PART = pa.struct(
    [("type", pa.string()), ("text", pa.string()), ("index", pa.int64()), ("image", pa.string())]
)
PARTS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(PART))]))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LMMKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    return tmp_path


def png(seed=0, size=(40, 30)):
    file = io.BytesIO()
    noisy_image(*size, seed).save(file, "PNG")
    return file.getvalue()


def written(path, columns, *, groups=3, format=None):
    """Writes a table: parquet with small row groups, or Arrow as `datasets` does (a stream), or a Feather file."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=groups)
        return path
    new = pa.ipc.new_file if format == "feather" else pa.ipc.new_stream
    with new(path, table.schema) as sink:
        sink.write_table(table, max_chunksize=groups)
    return path


def opened(path, *, images=None, columns=None, template="vicuna_v1", **options):
    return open_records(
        "set",
        records=path,
        images=images,
        template=template,
        image_fit="pad",
        columns=columns or {},
        **options,
    )


def problems(path, **options):
    with pytest.raises(UserError) as error:
        opened(path, **options)
    return error.value.problems


def talk(words):
    return [{"role": "user", "content": words}, {"role": "assistant", "content": "A."}]


def talks(count, words="What {}?"):
    return pa.array([talk("<image>" + words.format(i)) for i in range(count)], TURNS)


def cells(count):
    return pa.array([[{"bytes": png(i), "path": f"{i}.png"}] for i in range(count)], pa.list_(IMAGE))


FORMATS = ["r.parquet", "r.arrow", "feather"]


@pytest.mark.parametrize("name", FORMATS)
def test_embedded_images_are_read_as_their_files(folder, name):
    path = folder / ("r.arrow" if name == "feather" else name)
    columns = {
        "messages": talks(8),
        "images": cells(8),
        "id": [f"k{i}" for i in range(8)],
        "score": [0.5, float("nan")] * 4,
    }
    records = pickle.loads(pickle.dumps(opened(written(path, columns, format=name))))
    assert len(records) == 8 and records.notes == {} and records.words_N.tolist() == [3] * 8
    for i, sample in enumerate(records):
        assert (sample.key, sample.turns[0].text, sample.turns[0].images) == (f"set:k{i}", f"What {i}?", 1)
        assert sample.meta == ({} if i % 2 else {"score": 0.5})
        assert sample.images == (Image(str(path), cell=(i, "images", 0)),)
        (folder / "one.png").write_bytes(png(i))
        assert torch.equal(
            read_image(sample.images[0], SPEC, "pad"), read_image(folder / "one.png", SPEC, "pad")
        )
    assert records.where(5) == f"{path}:6 (record 5)"
    assert check_images(records) == missing_images(records) == []
    assert [i for i, _ in records.indexed.all_images()] == list(range(8))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("listed", [True, False])
def test_every_mix_of_images_is_the_plain_twin_s(folder, name, listed):
    """Random records whose images are bytes, paths or absent, in columns of each type."""
    rng = random.Random(f"{name} {listed}")
    path = folder / ("r.arrow" if name == "feather" else name)
    for each in range(5):
        (folder / "images" / f"{each}.png").write_bytes(png(each))
    for kinds in (["bytes"], ["path"], ["bytes", "path"], ["bytes", None], ["bytes", "path", None]):
        values, want = [], []
        for _ in range(12):
            kind, each = rng.choice(kinds), rng.randrange(5)
            chosen = (
                [(kind, each)]
                if not listed
                else [(k, rng.randrange(5)) for k in rng.choices(kinds, k=2) if k]
            )
            chosen = [pair for pair in chosen if pair[0]]
            dicts = [
                {"bytes": png(n) if k == "bytes" else None, "path": f"{n}.png" if k == "path" else "x"}
                for k, n in chosen
            ]
            values.append((dicts or rng.choice([None, []])) if listed else dicts[0] if dicts else None)
            want.append([n for _, n in chosen])
        turns = [talk("<image>" * len(each) + "What?") for each in want]
        columns = {
            "messages": pa.array(turns, TURNS),
            "photo": pa.array(values, pa.list_(IMAGE) if listed else IMAGE),
        }
        records = opened(
            written(path, columns, groups=7, format=name),
            images=folder / "images",
            columns={"images": "photo"},
        )
        assert len(records) == 12
        for sample, numbers in zip(records, want, strict=True):
            assert len(sample.images) == len(numbers)
            for found, n in zip(sample.images, numbers, strict=True):
                there = read_image(folder / "images" / f"{n}.png", SPEC, "pad")
                assert torch.equal(read_image(found, SPEC, "pad"), there)
        assert missing_images(records) == []


@pytest.mark.parametrize("kind", ["binary", "list of binary", "string", "list of string"])
def test_columns_of_plain_bytes_and_of_paths(folder, kind):
    (folder / "images" / "a.png").write_bytes(png(3))
    cell = png(3) if "binary" in kind else "a.png"
    values = [[cell] if "list" in kind else cell, None]
    turns = [talk("<image>What?"), talk("Hi")]
    columns = {"messages": pa.array(turns, TURNS), "image": values}
    records = opened(written(folder / "r.parquet", columns), images=folder / "images")
    assert [len(sample.images) for sample in records] == [1, 0]
    assert torch.equal(
        read_image(records[0].images[0], SPEC, "pad"), read_image(folder / "images" / "a.png", SPEC, "pad")
    )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("field", ["bytes", "path"])
def test_a_field_of_images_that_no_record_has_is_absent(folder, name, field):
    """pyarrow gives the type null to a field that is None everywhere."""
    (folder / "images" / "a.png").write_bytes(png(3))
    given = {"path": "a.png", "bytes": png(3)}
    columns = {"messages": talks(4), "images": [[given | {field: None}]] * 4}
    path = folder / ("r.arrow" if name == "feather" else name)
    assert "null" in str(pa.table(columns).schema.field("images").type)
    records = opened(written(path, columns, format=name), images=folder / "images")
    expected = read_image(folder / "images" / "a.png", SPEC, "pad")
    assert [torch.equal(read_image(each.images[0], SPEC, "pad"), expected) for each in records] == [True] * 4
    with pytest.raises(UserError, match="records/table-columns"):
        columns["images"] = [[{"bytes": None, "path": None}]] * 4
        opened(written(path, columns, format=name), images=folder / "images")


CODED = pa.dictionary(pa.int32(), pa.string())
VIEWS = pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())])
VIEW_TURNS = pa.list_(pa.struct([("role", pa.string_view()), ("content", pa.string_view())]))


@pytest.mark.parametrize("name", FORMATS)
def test_texts_in_a_list_of_values_and_views_are_read(folder, name):
    """Reads what pandas writes of categories, and polars of all texts and bytes."""
    (folder / "images" / "a.png").write_bytes(png(0))
    path = folder / ("r.arrow" if name == "feather" else name)
    columns = {
        "messages": talks(3), "image": pa.array(["a.png", None, "a.png"], CODED), "topic": pa.array(["x", "y", "x"], CODED),
        "id": pa.array(["k", "l", "m"], CODED),
    }  # fmt: skip
    columns["messages"] = pa.array([talk("<image>What?"), talk("Hi"), talk("<image>What?")], TURNS)
    records = opened(written(path, columns, format=name), images=folder / "images")
    assert [(s.key, s.meta, len(s.images)) for s in records] == [
        ("set:k", {"topic": "x"}, 1), ("set:l", {"topic": "y"}, 0), ("set:m", {"topic": "x"}, 1),
    ]  # fmt: skip
    assert records.notes == {}
    if name == "r.parquet":
        return  # pyarrow cannot write views in it
    columns = {
        "messages": pa.array(talks(3).to_pylist(), VIEW_TURNS),
        "images": pa.array(cells(3).to_pylist(), pa.list_(VIEWS)), "tag": pa.array(["x"] * 3, pa.string_view()),
    }  # fmt: skip
    records = opened(written(path, columns, format=name))
    assert [(s.turns[0].text, s.meta) for s in records] == [(f"What {i}?", {"tag": "x"}) for i in range(3)]
    assert [read_bytes(s.images[0])[0] for s in records] == [png(i) for i in range(3)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", [pa.null(), pa.list_(pa.null())])
def test_a_column_of_images_in_which_no_record_has_one(folder, name, kind):
    """Reads what `datasets` and pandas write if all records have an empty list, or nothing."""
    path = folder / ("r.arrow" if name == "feather" else name)
    nothing = [None, None if pa.types.is_null(kind) else []]
    columns = {"messages": talks(2, "Hi {}"), "images": pa.array(nothing, kind), "note": pa.nulls(2)}
    columns["messages"] = pa.array([talk("Hi"), talk("Ho")], TURNS)
    records = opened(written(path, columns, format=name))
    assert [s.turns[0].text for s in records] == ["Hi", "Ho"] and all(s.images == () for s in records)
    assert records.notes == {}
    columns["messages"] = pa.array([talk("Hi"), talk("<image>Ho")], TURNS)
    (found,) = problems(written(path, columns, format=name))
    assert found.code == "records/image-markers" and found.where.startswith(f"{path}:2 ")


def test_names_of_fields_and_columns_have_no_meaning_of_types(folder):
    turn = [each | {"is_binary": True} for each in talk("Hi")]
    columns = {"messages": pa.array([turn]), "": pa.array(["x.png"])}
    (sample,) = opened(written(folder / "r.parquet", columns))
    assert (sample.turns[0].text, sample.images, sample.meta) == ("Hi", (), {"": "x.png"})
    turn = [{"role": "user", "content": "Hi", "more": [{"x": b"y"}]}, *talk("")[1:]]
    (found,) = problems(written(folder / "r.parquet", {"messages": pa.array([turn])}))
    assert found.code == "records/table-columns" and "without images" in found.expected


@pytest.mark.parametrize("kind", ["string", "struct"])
def test_a_path_that_looks_like_the_number_of_a_cell_is_a_path(folder, kind):
    (folder / "images" / "0.bytes").write_bytes(png(4))
    cells = (
        [{"bytes": None, "path": "0.bytes"}, {"bytes": png(5), "path": "0.bytes"}]
        if kind == "struct"
        else ["0.bytes"] * 2
    )
    columns = {"messages": talks(2), "image": pa.array(cells, IMAGE if kind == "struct" else pa.string())}
    records = opened(written(folder / "r.parquet", columns), images=folder / "images")
    assert (
        read_bytes(records[0].images[0])[0] == png(4)
        and missing_images(records) == check_images(records) == []
    )
    assert (records[1].images[0].cell is None) == (kind == "string")
    (folder / "images" / "0.bytes").unlink()
    assert [p.code for p in missing_images(records)] == ["records/missing-image"]


def test_content_parts_choose_images_by_number(folder):
    part = {"type": "image", "text": None}
    turns = [
        asked(part | {"index": 1}, text("and"), part | {"index": 0}, text("?"), answer=[text("A.")])[
            "messages"
        ]
    ]
    columns = {
        "messages": pa.array(turns, PARTS),
        "images": pa.array([[{"bytes": png(n), "path": None} for n in (0, 1)]], pa.list_(IMAGE)),
    }
    (sample,) = opened(written(folder / "r.parquet", columns))
    assert [found.cell for found in sample.images] == [(0, "images", 1), (0, "images", 0)]
    assert (sample.turns[0].text, sample.turns[0].places) == ("and?", (0, 3))


def parts_of(content):
    listed = content if isinstance(content, list) else [content]
    return [text(each) if isinstance(each, str) else each for each in listed]


def test_records_without_images_equal_those_of_json(folder):
    pairs = [(a, b) for a, b in PAIRS if isinstance(a.get("messages"), list) and "image" not in json.dumps(a)]
    assert len(pairs) > 2
    flat = [
        [{"role": turn["role"], "content": parts_of(turn["content"])} for turn in ours["messages"]]
        for ours, _ in pairs
    ]
    ours = opened(written(folder / "r.parquet", {"messages": pa.array(flat, PARTS)}))
    (folder / "r.json").write_text(json.dumps([{"messages": turns} for turns in flat]))
    theirs = opened(folder / "r.json", images=folder / "images")
    assert list(ours) == list(theirs) and ours.words_N.tolist() == theirs.words_N.tolist()


def hub(folder, counts=(5, 4), split="train"):
    begin = 0
    for n, count in enumerate(counts):
        columns = {
            "messages": pa.array(talks(begin + count).to_pylist()[begin:], TURNS),
            "images": pa.array(cells(begin + count).to_pylist()[begin:], pa.list_(IMAGE)),
        }
        written(folder / f"{split}-{n:05d}-of-{len(counts):05d}.parquet", columns)
        begin += count
    return folder


def test_folders_and_patterns(folder):
    data = folder / "data"
    data.mkdir()
    records = opened(hub(data))
    assert [sample.turns[0].text for sample in records] == [f"What {i}?" for i in range(9)]
    assert records.where(5) == f"{data / 'train-00001-of-00002.parquet'}:1 (record 5)"
    assert [sample.key for sample in opened(data / "train-*.parquet")] == [f"set:{i}" for i in range(9)]
    hub(data, split="test")
    assert len(opened(data / "train-*.parquet")) == 9
    assert [path.name[:5] for path in table_files(data / "t*.parquet")] == [
        "test-",
        "test-",
        "train",
        "train",
    ]
    (found,) = problems(data)
    assert found.code == "records/file" and "test, train" in found.got
    assert found.expected == f"one split, such as {data}/train*.parquet"
    assert [p.code for p in problems(data / "valid-*.parquet")] == ["records/file"]
    assert [p.code for p in problems(folder / "images")] == ["records/file"]


def test_a_folder_of_several_splits_or_kinds_is_refused(folder):
    data = folder / "data"
    data.mkdir()
    for name in ("test_2.parquet", "train.parquet", "testing.parquet"):
        written(data / name, {"messages": talks(2), "images": cells(2)})
    (found,) = problems(data)
    assert (found.code, found.got) == ("records/file", "files of the splits test, train")
    (data / "train.parquet").unlink()
    assert len(opened(data)) == 4
    written(data / "train.arrow", {"messages": talks(2), "images": cells(2)})
    (found,) = problems(data)
    assert found.code == "records/file" and "parquet and Arrow" in found.got


def test_a_folder_of_save_to_disk(folder):
    data = folder / "data" / "train"
    data.mkdir(parents=True)
    for n in range(2):
        written(data / f"data-0000{n}-of-00002.arrow", {"messages": talks(3), "images": cells(3)})
    written(data / "cache-17.arrow", {"other": [1]})
    state = {"_data_files": [{"filename": f"data-0000{n}-of-00002.arrow"} for n in range(2)]}
    (data / "state.json").write_text(json.dumps(state))
    assert len(opened(data)) == 6
    (folder / "data" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (found,) = problems(folder / "data")
    assert found.code == "records/file" and "train" in found.got
    twice = json.dumps({"_data_files": 2 * state["_data_files"]})
    for broken in (
        "{",
        "[]",
        "[" * 100_000,
        twice,
        '{"_data_files": [{"filename": "../x.arrow"}]}',
        '{"_data_files": []}',
    ):
        (data / "state.json").write_text(broken)
        assert [p.code for p in problems(data)] == ["records/file"]


def test_faults_of_files_are_named_with_file_and_column(folder):
    good, bad = folder / "a.parquet", folder / "b.parquet"
    written(good, {"messages": talks(9), "images": cells(9)})
    for path in (folder / "twice.parquet", folder / "twice.arrow"):
        written(path, pa.Table.from_arrays([talks(2), cells(2), cells(2)], ["messages", "images", "images"]))
        (found,) = problems(path)
        assert found.code == "records/table-columns" and "several columns `images`" in found.got
    pattern = folder / "?.parquet"
    whole = good.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:-3], b"", b"PAR1"):
        bad.write_bytes(data)
        (found,) = problems(pattern)
        assert found.code == "records/table" and str(bad) in found.where
    written(bad, {"messages": talks(2), "images": pa.array([png(0)] * 2, pa.binary())})
    (found,) = problems(pattern)
    assert (
        found.code == "records/table-columns"
        and found.where == str(bad)
        and "`images` of type binary" in found.got
    )
    written(bad, {"messages": talks(2)})
    (found,) = problems(pattern)
    assert found.where == str(bad) and "`images` absent" in found.got and str(good) in found.expected
    wrong = [
        ({"chat": talks(2)}, {}, "`chat`"),
        ({"messages": talks(2), "conversations": talks(2)}, {}, "`messages` and `conversations`"),
        ({"messages": ["[]", "[]"]}, {}, "`messages` of type string"),
        ({"messages": talks(2), "images": [1, 2]}, {}, "`images` of type int64"),
        ({"messages": talks(2)}, {"images": "photo"}, "`photo`"),
        ({"messages": pa.array([[{"role": "user", "content": b"x"}]] * 2)}, {}, "binary"),
    ]
    for columns, mapping, word in wrong:
        (found,) = problems(written(folder / "w.parquet", columns), columns=mapping)
        assert (
            found.code == "records/table-columns" and word in found.got and found.where.endswith("w.parquet")
        ), word
    assert [p.code for p in problems(folder / "none.parquet")] == ["records/file"]
    assert [p.code for p in problems(written(folder / "e.parquet", {"messages": talks(0)}))] == [
        "records/empty"
    ]


def test_a_damaged_group_is_named(folder):
    path = written(folder / "r.parquet", {"messages": talks(9), "images": cells(9)})
    meta = parquet.ParquetFile(path).metadata
    data = bytearray(path.read_bytes())
    column = meta.row_group(1).column(1)  # the contents of messages 3 to 5
    begin = min(at for at in (column.dictionary_page_offset, column.data_page_offset) if at)
    data[begin : begin + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    (found,) = problems(path)
    assert found.code == "records/table" and found.where == f"{path}:4-6"


def test_faults_of_records_are_named_with_file_and_record(folder):
    turns = [
        talk("Hi"), talk("Hi")[::-1], [{"role": "tool", "content": "x"}], None,
        talk("<image>x"), talk("<image>x"), talk("<image>x"),
    ]  # fmt: skip
    images = [
        None,
        None,
        None,
        None,
        None,
        [{"bytes": None, "path": None}],
        [{"bytes": None, "path": "a.png"}],
    ]
    path = written(
        folder / "r.parquet",
        {"messages": pa.array(turns, TURNS), "images": pa.array(images, pa.list_(IMAGE))},
        groups=2,
    )
    records = opened(path, bad_records=Policy("skip", 0.9))
    assert [(bad.code, bad.line, bad.record) for bad in records.known_bad] == [
        ("records/no-answer", 2, 1), ("records/role", 3, 2), ("records/columns", 4, 3), ("records/image-markers", 5, 4),
        ("records/wrong-type", 6, 5), ("records/no-image-folder", 7, 6),
    ]  # fmt: skip
    assert len(records) == 1 and all(bad.file == str(path) for bad in records.known_bad)


def test_text_that_is_no_utf8_is_named_with_its_record(folder):
    storage = pa.array([b"Hi", b"\xff\xfe", b"Ho"], pa.binary())
    words = pa.Array.from_buffers(pa.string(), 3, storage.buffers())
    turn = pa.StructArray.from_arrays([pa.array(["user"] * 3), words], ["role", "content"])
    answer = pa.StructArray.from_arrays(
        [pa.array(["assistant"] * 3), pa.array(["A."] * 3)], ["role", "content"]
    )
    both = pa.concat_arrays([turn, answer]).take(pa.array([0, 3, 1, 4, 2, 5]))
    path = written(folder / "r.parquet", {"messages": pa.ListArray.from_arrays([0, 2, 4, 6], both)})
    records = opened(path, bad_records=Policy("skip", 0.9))
    assert [(bad.code, bad.line, bad.got[:9]) for bad in records.known_bad] == [
        ("records/table-text", 2, "byte 0xff")
    ]
    assert [sample.turns[0].text for sample in records] == ["Hi", "Ho"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "kind",
    [pa.timestamp("s"), pa.date32(), pa.timestamp("us", tz="Nowhere/Else")],
    ids=["time", "date", "zone"],
)
def test_values_that_python_lacks_are_named_with_their_record(folder, name, kind):
    stored = pa.array([7, 7, 2**31 - 1, 7, None, None], pa.int32() if kind == pa.date32() else pa.int64())
    if kind == pa.timestamp("s"):
        stored = pa.array([7, 7, 2**50, 7, None, None], pa.int64())
    roles, words = pa.array(["user", "assistant"] * 3), pa.array(["Hi", "Ho"] * 3)
    turns = pa.StructArray.from_arrays([roles, words, stored.view(kind)], ["role", "content", "when"])
    path = folder / ("r.arrow" if name == "feather" else name)
    written(path, {"messages": pa.ListArray.from_arrays([0, 2, 4, 6], turns)}, format=name)
    records = opened(path, bad_records=Policy("skip", 0.9))
    bad = [(each.code, each.line, each.record) for each in records.known_bad]
    lines = (1, 2) if "Nowhere" in str(kind) else (2,)
    assert bad == [("records/table-value", line, line - 1) for line in lines]
    assert len(records) == 3 - len(lines) and records[-1 + len(records)].turns[0].text == "Hi"


def test_bytes_that_are_no_image_are_named(folder):
    values = [[{"bytes": png(i) if i != 3 else b"no image", "path": None}] for i in range(5)]
    path = written(folder / "r.parquet", {"messages": talks(5), "images": pa.array(values, pa.list_(IMAGE))})
    (found,) = check_images(opened(path))
    assert found.code == "image/format" and f"{path}:4 (record 3), {path}:4 (`images`, image " in found.where


def test_a_changed_file_stops_a_reader(folder):
    path = written(folder / "r.parquet", {"messages": talks(5), "images": cells(5)})
    records = opened(path)
    before = records.identity()
    assert opened(path).identity() == before
    written(path, {"messages": talks(6), "images": cells(6)})
    with pytest.raises(UserError) as error:
        records[2]
    assert error.value.problems[0].code == "records/changed"
    assert opened(path).identity() != before
    written(path, {"messages": talks(6, "Which {}?"), "images": cells(6)})
    assert opened(path).identity()["records"] != before["records"]


def test_columns_that_are_not_read_are_counted(folder):
    columns = {
        "messages": talks(2), "images": cells(2), "when": pa.array([1, 2], pa.timestamp("s")), "tags": [["a"], []],
        "conversations": pa.array([1, 2]),
    }  # fmt: skip
    records = opened(written(folder / "r.parquet", columns), columns={"messages": "messages"})
    assert records[0].meta == {"tags": ("a",)}
    assert set(records.notes) == {
        "`when` is not kept: it is no text, number or list of them",
        "`conversations` is not read: `columns` names another one",
    }


def test_records_in_large_row_groups_are_counted(folder, monkeypatch):
    columns = {"messages": talks(8), "images": cells(8), "unread": pa.array([{"x": os.urandom(9000)}] * 8)}
    path = written(folder / "r.parquet", columns, groups=5)
    meta = parquet.ParquetFile(path).metadata
    large, small = (
        sum(meta.row_group(g).column(c).total_uncompressed_size for c in range(meta.num_columns - 1))
        for g in (0, 1)
    )
    assert meta.row_group(0).column(meta.num_columns - 1).path_in_schema == "unread.x"
    for limit, count in ((large, 0), (large - 1, 5), (small - 1, 8)):
        monkeypatch.setattr(parquet_records, "LARGE", limit)
        monkeypatch.setenv("LMMKIT_CACHE", str(folder / f"cache{limit}"))
        assert opened(path).notes.get(parquet_records.SLOW, 0) == count
    written(folder / "r.arrow", {"messages": talks(8), "images": cells(8)})
    assert opened(folder / "r.arrow").notes == {}


@pytest.mark.parametrize("name", FORMATS)
def test_reading_in_order_reads_each_piece_once(folder, name, monkeypatch):
    path = folder / ("r.arrow" if name == "feather" else name)
    columns = {"messages": talks(40), "images": cells(40), "id": [f"k{i}" for i in range(40)]}
    records = opened(written(path, columns, groups=25, format=name))
    kind, read = type(open_table(str(path))), []
    pieces = kind.pieces

    def counting(self, group, columns, size):
        for piece in pieces(self, group, columns, size):
            read.append((group, *columns))
            yield piece

    monkeypatch.setattr(kind, "pieces", counting)

    def content(i):
        (image,) = records[i].images
        return records[i].key, read_bytes(image)

    numbers = [*range(40), 39, 3, 30, 7, 7]
    alone = [content(i) for i in numbers]
    many, read[:] = len(read), []
    with in_order():
        assert [content(i) for i in range(40)] == alone[:40]
        # 7 + 4 pieces of images; of texts, 1 + 1 pieces and those of the groups: none is read again
        assert len(read) == 7 + 4 + 2 and many > 10 * len(read)
        assert [content(i) for i in numbers] == alone
    read.clear()
    content(39)
    assert len(read) > 4


def test_a_group_that_breaks_while_it_is_read_in_order_gives_no_wrong_record(folder, monkeypatch):
    path = written(folder / "r.parquet", {"messages": talks(9), "images": cells(9)}, groups=9)
    table = open_table(str(path))
    pieces = type(table).pieces

    def breaking(self, group, columns, size):
        for number, piece in enumerate(pieces(self, group, columns, size)):
            if number == 1:
                raise UserError(TABLE_FILE.at(self.path, got="broken", expected="a complete file"))
            yield piece

    monkeypatch.setattr(type(table), "pieces", breaking)
    with in_order():
        assert table.read(2, ["images"], 4)["images"][0]["bytes"] == png(2)
        for record in (5, 5, 8):
            with pytest.raises(UserError):
                table.read(record, ["images"], 4)
        assert table.read(3, ["images"], 4)["images"][0]["bytes"] == png(3)


def test_a_missing_pyarrow_is_a_fault_of_the_machine(folder, monkeypatch):
    path = written(folder / "r.parquet", {"messages": talks(2), "images": cells(2)})
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MachineError) as error:
        opened(path)
    assert error.value.problems[0].code == "records/no-pyarrow"


def test_a_cell_that_is_not_there_is_a_problem(folder):
    path = str(written(folder / "r.parquet", {"messages": talks(2), "images": cells(2)}))
    for cell in ((0, "images", 3), (7, "images", 0)):
        with pytest.raises(UserError) as error:
            read_image(Image(path, cell=cell), SPEC, "pad")
        assert error.value.problems[0].code == "records/table"


def test_batches_are_those_of_the_same_records_in_json(tiny, scenes, tmp_path):
    values = json.loads((scenes / "finetune.json").read_text())
    turns = pa.array([
        [{"role": {"human": "user", "gpt": "assistant"}[t["from"]], "content": t["value"]} for t in each["conversations"]]
        for each in values
    ], TURNS)  # fmt: skip
    images = pa.array(
        [{"bytes": (scenes / each["image"]).read_bytes(), "path": "x"} for each in values], IMAGE
    )
    written(
        tmp_path / "q.parquet",
        {"messages": turns, "image": images, "id": [each["id"] for each in values]},
        groups=50,
    )
    line = "questions: {kind: llava, records: finetune.json, images: ., "
    assert line in PLAIN
    table = PLAIN.replace(line, f"questions: {{kind: messages, records: {tmp_path}/q.parquet, ")
    ours, theirs = (prepare(tiny(text=recipe)).pipeline("finetune").step(3) for recipe in (table, PLAIN))
    for a, b in zip(ours, theirs, strict=True):
        assert (
            a.views == b.views and torch.equal(a.id_T, b.id_T) and torch.equal(a.pixels_ICXY, b.pixels_ICXY)
        )


def fuzz_tables(folder, count, seed):
    """Returns (accepted, refused) of `count` records, in files whose cells and bytes are changed at random."""
    rng = random.Random(seed)
    accepted = refused = 0
    words = ["Hi", "", "<image>", "x <image> y", None, "\0", "<video>", "a" * 1000]
    roles = ["user", "assistant", "system", "tool", "human", None, ""]
    for n in itertools.count():
        if accepted + refused >= count:
            return accepted, refused
        size = rng.randrange(1, 40)
        turns = [
            rng.choice([None, []]) if rng.random() < 0.05 else talk(rng.choice(["<image>x", "x"])) if rng.random() < 0.7 else
            [{"role": rng.choice(roles), "content": rng.choice(words)} for _ in range(rng.randrange(4))]
            for _ in range(size)
        ]  # fmt: skip
        images = [
            rng.choice(
                [
                    None,
                    [],
                    [None],
                    [{"bytes": rng.randbytes(9), "path": "x"}],
                    [{"bytes": None, "path": rng.choice(["a.png", "../a", "", None])}] * 2,
                ]
            )
            for _ in range(size)
        ]
        path = folder / f"{n % 4}{rng.choice(['.parquet', '.arrow'])}"
        written(
            path,
            {"messages": pa.array(turns, TURNS), "images": pa.array(images, pa.list_(IMAGE))},
            groups=rng.randrange(1, 9),
        )
        data = bytearray(path.read_bytes())
        for _ in range(rng.choice([0, 0, 0, 1, 3])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.1:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        begin = time.process_time()
        try:
            records = opened(
                path, images=rng.choice([None, folder / "images"]), bad_records=Policy("skip", 0.9999)
            )
        except UserError as error:
            assert all(str(path.parent) in p.where and p.hint for p in error.problems)
            refused += size
            continue
        refused += records.left_out
        for i in range(len(records)):
            try:
                assert records[i].turns
                accepted += 1
            except UserError as error:  # damage that the pass could not find
                assert error.problems[0].where
                refused += 1
        for _, found in records.indexed.all_images():
            with pytest.raises(UserError):
                read_image(found, SPEC, "pad")
        assert time.process_time() - begin < 5


def test_three_hundred_junk_records(folder):
    assert min(fuzz_tables(folder, 300, 0)) > 30


@pytest.mark.slow
def test_five_thousand_junk_records(folder):
    assert min(fuzz_tables(folder, 5000, 1)) > 500


def million(path, count, group=1000):
    """Writes records of one caption and 20 kB of bytes each, group by group."""
    schema = pa.schema([("messages", TURNS), ("image", IMAGE)])
    data = np.random.default_rng(0).bytes(20_000)
    with parquet.ParquetWriter(path, schema) as sink:
        for begin in range(0, count, group):
            turns = [talk(f"<image>What {i}?") for i in range(begin, min(count, begin + group))]
            images = [{"bytes": data, "path": None}] * len(turns)
            sink.write_table(
                pa.table({"messages": pa.array(turns, TURNS), "image": pa.array(images, IMAGE)}, schema)
            )


@pytest.mark.slow
def test_a_hundred_thousand_records_open_again_quickly_and_a_worker_needs_little_memory(folder):
    path = folder / "r.parquet"
    million(path, 100_000)
    opened(path)
    begin = time.perf_counter()
    records = opened(path)
    assert time.perf_counter() - begin < 2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in random.Random(0).sample(range(len(records)), 10):
        (found,) = records[i].images
        assert len(open_table(found.path).read(found.cell[0], ["image"])["image"]["bytes"]) == 20_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
