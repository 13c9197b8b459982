"""The index of a records file: built once, never trusted, with the same records as a full read."""

import json
import os
import pickle
import random
import shutil

import numpy as np
import pytest

from lmmkit.data.sources import index_cache, json_stream, llava_json
from lmmkit.data.sources.bad_records import Policy
from lmmkit.data.sources.index_cache import Index, load_index
from lmmkit.data.sources.json_records import RawRecord, parse_record, read_records
from lmmkit.data.sources.record_parser import RecordParser, measure_record
from lmmkit.data.sources.records import open_records
from lmmkit.errors import UserError
from tests.data.sources.test_records import GOOD, GPT, HUMAN, conversation, mutate

VALUES = [
    GOOD, GOOD | {"id": 8}, conversation("Hi \u732b", "Hello \u00e9\U0001f600", image=None), GOOD,
    GOOD | {"id": "x", "image": "sub/b.png", "type": "short"}, conversation("<image><image> x", "y", image=["a.png", "c.png"]),
]  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMMKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    return tmp_path / "cache" / "index"


def opened(folder, values=None, name="r.json", **options):
    path = folder / name
    if values is not None:
        path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    return open_records(
        "s", records=path, images=folder / "images", template="vicuna_v1", image_fit="pad", **options
    )


def never(*args):
    raise AssertionError("a second pass")


def test_a_second_opening_makes_no_pass(tmp_path, cache, monkeypatch):
    first = list(opened(tmp_path, VALUES))
    monkeypatch.setattr(llava_json, "_index", never)
    again = opened(tmp_path)
    assert list(again) == first
    assert len(list(cache.iterdir())) == 1
    assert again.words_N.tolist() == [4, 4, -4, 4, 4, 3]
    assert [i for i, _ in again.indexed.all_images()] == [0, 4, 5]
    assert [again.where(i).rpartition("(")[2] for i in range(2)] == ["record 0)", "record 1)"]


def test_it_is_pickled_as_its_folder_and_the_records_stay_the_same(tmp_path, cache):
    records = opened(tmp_path, [GOOD | {"id": i} for i in range(5000)])
    sent = pickle.dumps(records)
    assert len(sent) < 5000  # bytes: a data worker maps the index from its folder
    assert pickle.loads(sent)[4321] == records[4321]


def test_a_damaged_index_is_built_again(tmp_path, cache):
    want = list(opened(tmp_path, VALUES))
    (folder,) = cache.iterdir()
    names = [path.name for path in folder.iterdir()]
    assert len(names) == 5
    rng = random.Random(0)
    for name in names:
        for harm in ("flip", "cut", "lose", "empty"):
            path = folder / name
            data = bytearray(path.read_bytes())
            if harm == "flip" and data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data if harm == "flip" else data[: len(data) // 2] if harm == "cut" else b"")
            if harm == "lose":
                path.unlink()
            if bytes(data) != b"" or harm == "lose":
                assert load_index(folder) is None, (name, harm)
            assert list(opened(tmp_path)) == want, (name, harm)
            assert load_index(folder) is not None


def test_a_wrong_index_with_good_checksums_gives_problems(tmp_path, cache):
    """Only its offsets are trusted; the records found there are checked."""
    opened(tmp_path, VALUES)
    (folder,) = cache.iterdir()
    index = load_index(folder)
    assert index is not None
    for name, value in (
        ("offset", 3),
        ("offset", 10**18),
        ("length", 10**6),
        ("length", 0),
        ("line", 10**17),
    ):
        table = index.arrays["records"].copy()
        table[name] = value
        meta = {key: kept for key, kept in index.meta.items() if key != "files"}
        index_cache._save(Index(meta, {**index.arrays, "records": table}), folder)
        records = opened(tmp_path)
        if name == "line":
            assert records[0].key == "s:7"
        else:
            with pytest.raises(UserError) as error:
                records[0]
            assert error.value.problems[0].code in ("records/json", "records/file"), name


def test_changed_files_are_indexed_again(tmp_path, cache):
    opened(tmp_path, VALUES)
    stat = os.stat(tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text().replace("A cat.", "A dog.")
    (tmp_path / "r.json").write_text(text)
    os.utime(tmp_path / "r.json", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as `cp -p` leaves it
    assert os.stat(tmp_path / "r.json").st_size == stat.st_size
    assert opened(tmp_path)[0].turns[1].text == "A dog."
    assert len(opened(tmp_path, VALUES[:2])) == 2
    assert len(list(cache.iterdir())) == 1  # one index a file


def test_a_file_that_changes_during_a_run_is_a_problem(tmp_path, cache):
    records = opened(tmp_path, VALUES)
    assert records[0].key == "s:7"
    with open(tmp_path / "r.json", "a") as file:
        file.write(" ")
    with pytest.raises(UserError) as error:
        records[1]
    assert error.value.problems[0].code == "records/changed"
    records = opened(tmp_path)
    shutil.rmtree(cache)
    with pytest.raises(UserError) as error:
        pickle.loads(pickle.dumps(records))
    assert error.value.problems[0].code == "records/changed"


def test_without_a_place_for_it_the_index_stays_in_memory(tmp_path, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LMMKIT_CACHE", str(tmp_path / "file"))
    records = opened(tmp_path, VALUES)
    assert "LMMKIT_CACHE" in capsys.readouterr().err
    assert list(pickle.loads(pickle.dumps(records))) == list(records)


def records_in(path):
    with json_stream.Window(path) as window:
        return list(read_records(window))


@pytest.mark.parametrize("block", [1, 7, 64, 2**20])
def test_read_in_pieces_a_file_has_the_same_records(tmp_path, monkeypatch, block):
    monkeypatch.setattr(json_stream, "_BLOCK", block)
    for name, text in (
        ("a.json", json.dumps(VALUES, ensure_ascii=False, indent=1)),
        ("a.jsonl", "\n\n".join(json.dumps(value, ensure_ascii=False) for value in VALUES)),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        raws = records_in(tmp_path / name)
        assert [raw.value for raw in raws] == VALUES
        data = (tmp_path / name).read_bytes()
        for raw in raws:
            assert json.loads(data[raw.offset : raw.offset + raw.length]) == raw.value
            assert raw.line == data[: raw.offset].count(b"\n") + 1
        broken = text.replace('"id": 8', '"id" 8')
        (tmp_path / name).write_text(broken, encoding="utf-8")
        (fault,) = [raw for raw in records_in(tmp_path / name) if raw.faults]
        line = broken[: broken.index('"id" 8')].count("\n") + 1
        column = broken.index('"id" 8') - broken.rfind("\n", 0, broken.index('"id" 8')) + 5
        assert fault.line == line
        assert f"column {column}:" in fault.faults[0][0], block


@pytest.mark.parametrize("block", [1, 7, 64, 2**20])
def test_read_in_pieces_bytes_that_are_no_utf8_spoil_their_record_only(tmp_path, monkeypatch, block):
    monkeypatch.setattr(json_stream, "_BLOCK", block)
    rows = [json.dumps(value, ensure_ascii=False).encode() for value in VALUES]
    rng = random.Random(block)
    for bad in (
        b"\xff",
        b"\xe7\x8c",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98",
    ):  # the last of a row may begin a character
        spoilt = {i for i in range(len(rows)) if rng.random() < 0.5} or {3}
        changed = [
            row.replace(b'"value"', b'"val' + bad + b'ue"', 1) if i in spoilt else row
            for i, row in enumerate(rows)
        ]
        for name, data in (("a.json", b"[" + b",".join(changed) + b"]"), ("a.jsonl", b"\n".join(changed))):
            (tmp_path / name).write_bytes(data)
            raws = records_in(tmp_path / name)
            assert {i for i, raw in enumerate(raws) if raw.faults} == spoilt and len(raws) == len(rows)
            for raw, row, value in zip(raws, changed, VALUES, strict=True):
                assert data[raw.offset : raw.offset + raw.length] == row
                assert raw.value == value or raw.faults == parse_like(data, row, raw.offset)


def parse_like(data, row, offset):
    """Returns the fault of a row, as Python's decoder finds it."""
    with pytest.raises(UnicodeDecodeError) as error:
        row.decode()
    at = offset + error.value.start
    return ((f"byte 0x{data[at]:02x} at offset {at}, which is no UTF-8", "JSON in UTF-8"),)


def test_the_fast_pass_accepts_only_what_the_parser_accepts():
    rng = random.Random(3)
    base = [
        GOOD,
        GOOD | {"id": None},
        conversation("Hi", "Ho", image=None),
        conversation("<image> x", "y", "z", "w"),
        conversation("x", "y <image>"),
        GOOD | {"system": "", "weight": 1},
        GOOD | {"conversations": [HUMAN | {"loss": 0}, GPT | {"loss": True}]},
    ]
    passed = 0
    for i in range(20_000):
        value = rng.choice(base) if i % 50 == 0 else mutate(rng, rng.choice(base))
        text = json.dumps(value)
        raw = parse_record(text.encode(), 0, 1)._replace(no_surrogates="\\ud" not in text, length=len(text))
        for template in ("plain", "vicuna_v1"):
            fast, reader = measure_record(raw, template), RecordParser(template=template)
            if fast is not None:
                record = reader.read(raw)
                assert record is not None, (value, reader.problems)
                assert fast == reader.size(record)
                passed += 1
    assert passed > 500


def test_words_are_counted_as_llava_counts_them(tmp_path, cache):
    values = [conversation("<image>\n a  b", "c d e"), conversation("a", "b\nc", "d", "e", image=None)]
    sizes = [sum(len(turn["value"].split()) for turn in value["conversations"]) for value in values]
    assert opened(tmp_path, values).words_N.tolist() == [sizes[0], -sizes[1]]
    assert np.dtype(np.int32) == opened(tmp_path).words_N.dtype


def test_a_record_without_end_is_refused_and_not_read_forever(tmp_path, monkeypatch):
    monkeypatch.setattr("lmmkit.data.sources.json_records.MAX_RECORD", 1000)
    monkeypatch.setattr(json_stream, "MAX_RECORD", 1000)
    monkeypatch.setattr(json_stream, "_BLOCK", 100)
    (tmp_path / "a.jsonl").write_text('{"id": "' + "x" * 10_000)
    (tmp_path / "a.json").write_text('[{"id": "' + "x" * 10_000)
    for name in ("a.jsonl", "a.json"):
        (raw,) = records_in(tmp_path / name)
        assert isinstance(raw, RawRecord) and raw.faults[0][0] == "a record of more than 1000 characters"


@pytest.mark.parametrize("block", [50, 100, 700, 2**20])
def test_a_record_that_is_too_long_is_one_bad_record(cache, tmp_path, monkeypatch, block):
    monkeypatch.setattr("lmmkit.data.sources.json_records.MAX_RECORD", 1000)
    monkeypatch.setattr(json_stream, "MAX_RECORD", 1000)
    monkeypatch.setattr(json_stream, "_BLOCK", block)
    size = len(json.dumps(GOOD | {"note": ""}))
    values = [GOOD | {"note": "\u00e4" * n} for n in (0, 1001 - size, 3, 9000, 1000 - size, 5)]
    texts = [json.dumps(each, ensure_ascii=False) for each in values]
    (tmp_path / "r.jsonl").write_text("\n".join([*texts, texts[3]]), encoding="utf-8")
    (tmp_path / "r.json").write_text(f"[{','.join([*texts[:3], *texts[4:], texts[3]])}]", encoding="utf-8")
    for name, lines in (("r.jsonl", [2, 4, 7]), ("r.json", [1, 1])):
        bad = [raw for raw in records_in(tmp_path / name) if raw.faults]
        assert [raw.line for raw in bad] == lines and {raw.faults[0][0] for raw in bad} == {
            "a record of more than 1000 characters"
        }
    records = opened(tmp_path, name="r.jsonl", bad_records=Policy("skip"))
    assert [len(str(s.meta["note"])) for s in records] == [0, 3, 1000 - size, 5] and records.left_out == 3
    assert opened(tmp_path, [GOOD, values[1]], bad_records=Policy("skip")).left_out == 1
