"""Data sets in another form: the same training samples there and back, and a count of what is not carried."""

import datetime
import decimal
import errno
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as Pil

from lmmkit.data.convert import convert_records as convert_module
from lmmkit.data.convert.convert_records import convert_records
from lmmkit.data.convert.source_kind import source_kind
from lmmkit.data.image_files.image_file import read_bytes
from lmmkit.data.sources.bad_records import STRICT, Policy
from lmmkit.data.sources.records import open_records
from lmmkit.errors import MachineError, UserError
from lmmkit.recipe.rules.data_rules import check_source
from lmmkit.recipe.stage import Source
from lmmkit.runs import files
from tests.data.sources.joined.test_joined_records import coco, vqa
from tests.data.sources.test_messages_records import PAIRS
from tests.data.sources.test_messages_records_fuzz import changed
from tests.data.test_images import noisy_image

FORMS = ["llava", "llava-jsonl", "messages", "messages-jsonl", "parquet", "webdataset"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LMMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "fsync", lambda path: None)  # it takes most of the time
    return tmp_path


@pytest.fixture
def pool(folder):
    """Writes a folder of images; two names have the same bytes."""
    for n, name in enumerate(("a.png", "b.png", "x/b.png", "x/y z.jpg", "e.bmp", "noname", "x/a.png")):
        path = folder / "pool" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        format = "JPEG" if name.endswith("jpg") else "BMP" if name.endswith("bmp") else "PNG"
        noisy_image(20, 10, n % 6).save(path, format)
    return folder / "pool"


def opened(path, images=None, *, kind=None, annotations=None, columns=None, policy=STRICT):
    kind = kind or source_kind(path, annotations)
    return open_records(
        "set", records=path, images=images, template="vicuna_v1", image_fit="pad", bad_records=policy,
        columns=(columns or {}) if kind == "messages" else None, official=kind if kind in ("coco", "vqa") else None,
        annotations=annotations,
    )  # fmt: skip


def reopened(report, **options):
    recipe = {key: value for key, value in report.recipe.items() if key != "kind"}
    images = Path(recipe["images"]) if "images" in recipe else None
    return opened(Path(recipe["records"]), images, kind=report.recipe["kind"], **options)


def content(sample, *, without=()):
    """Returns a sample with the bytes of its images in place of their places."""
    images = tuple(read_bytes(image)[0] for image in sample.images)
    meta = {key: value for key, value in sample.meta.items() if key not in without}
    return replace(sample, images=images, meta=meta)  # type: ignore[arg-type]


def turns(*texts, **more):
    return [{"from": ("human", "gpt")[i % 2], "value": text, **more} for i, text in enumerate(texts)]


BASE = [
    {"id": 7, "image": "a.png", "conversations": turns("<image>\nWhat?", "A.", "And?", " B. ")},
    {"id": 7, "image": "x/a.png", "conversations": turns("What?\n<image>", "A.")},
    {"image": ["a.png", "x/b.png"], "conversations": turns("Before: <image> After: <image>?", "A <b>."), "score": 1},
    {"images": ["b.png", "e.bmp"], "conversations": turns("What?", "\u732b \U0001f600"), "score": 0.5, "tags": ["x", "y"]},
    {"image": "x/y z.jpg", "conversations": turns("<image> and <image>", "A."), "box": [1, 2.5, 3, 4], "ok": True},
    {"id": "t", "conversations": turns("Hi", "The marker <image>."), "system": "Be brief.", "tags": []},
    {"conversations": [{"from": "system", "value": "Be kind."}, *turns("Hi\n", "Ho")], "a.b": 3, "a": "x"},
    {"conversations": [*turns("", "Left out")[1:], *turns("Hi", "Ho", weight=0)], "n": 2**60},
    {"image": "noname", "conversations": turns("<image>", "A.", "<image/>?", "B.", loss=True), "tags": ["\u00e9"]},
]  # fmt: skip


@pytest.fixture
def base(folder, pool):
    (folder / "base.json").write_text(json.dumps(BASE))
    return opened(folder / "base.json", pool)


def test_samples_are_equal_in_each_form_and_back(base, folder):
    want = [content(sample) for sample in base]
    assert len(want) == len(BASE)
    for one in FORMS:
        there = convert_records(base, folder / one, one, copy=None)
        records = reopened(there)
        assert [content(sample) for sample in records] == want, one
        assert there.records == len(BASE) and not there.refused
        assert there.lost == ({"the name of an image": 6} if one == "webdataset" else {}), one
        for other in {"llava", FORMS[FORMS.index(one) - 1]}:
            back = convert_records(records, folder / f"{one} {other}", other, copy=None)
            assert [content(sample) for sample in reopened(back)] == want, (one, other)
            assert records.indexed.contains_images == (one in ("parquet", "webdataset"))


@pytest.mark.parametrize("form", FORMS[:-1])
@pytest.mark.parametrize("copy", [True, False])
def test_images_are_copied_or_named_where_they_are(base, folder, form, copy):
    report = convert_records(base, folder / "new", form, copy=copy)
    records = reopened(report)
    assert [content(sample) for sample in records] == [content(sample) for sample in base]
    paths = [image.path for sample in records for image in sample.images]
    assert report.images == (len(paths) if copy else 0) and len(paths) == 8
    if not copy:
        assert paths == [image.path for sample in base for image in sample.images]
    elif form != "parquet":
        assert {path.removeprefix(f"{folder}/new/images/") for path in paths} >= {"a.png", "x/b.png", "e.bmp"}
        assert len(set(paths)) == 6 and all(
            len(path.rpartition("/")[2].partition(".")[0]) in (1, 32) for path in paths
        )


@pytest.mark.parametrize("form", FORMS)
def test_official_files_are_sources(folder, pool, form):
    noisy_image(9, 9, 1).save(pool / "a.jpg")
    official, (questions, annotations) = coco(images=(1, 2, 3)), vqa()
    for each in [*official["images"], *questions["questions"]]:
        each["file_name" if "file_name" in each else "image"] = "a.png"
    for name, value in (("c.json", official), ("q.json", questions), ("a.json", annotations)):
        (folder / name).write_text(json.dumps(value))
    captions, asked = (
        opened(folder / "c.json", pool),
        opened(folder / "q.json", pool, annotations=folder / "a.json"),
    )
    assert source_kind(folder / "c.json", None) == "coco"
    for records in (captions, asked):
        report = convert_records(records, folder / f"new {records.path.name}", form, copy=None)
        assert [content(sample) for sample in reopened(report)] == [content(sample) for sample in records]
    assert report.lost["`answer_id` of an answer is not kept"] == 3
    assert captions.notes.keys() == {"an entry of `images` that no entry of `annotations` names is not used"}


def test_what_a_form_cannot_contain_is_counted(folder):
    plain = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    odd = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "cache": 1}]},
                        {"role": "assistant", "content": "Ho", "tool_calls": [{"name": "x"}], "note": "n"}]}  # fmt: skip
    values = [
        plain | {"mixed": 1, "tools": [{"a": 1}], "big": 2**65, "list": [1, "x"], "odd": "\ud800"[:0]},
        odd | {"mixed": "x", "tools": [], "list": [None], "deep": {"x": "\ud800"}}, odd | {"mixed": True},
    ]  # fmt: skip
    (folder / "r.json").write_text(json.dumps(values))
    records = opened(folder / "r.json", folder, kind="messages")
    read = "`cache` of a content part is not read"
    for form, lost in (
        ("llava", {read: 2}), ("messages-jsonl", {read: 2}), ("webdataset", {read: 2}),
        ("parquet", {
            read: 2, "`mixed`: integers and texts and true or false cannot be a column": 3,
            "`tools`: a list of an object and an empty list cannot be a column": 2,
            "`big`: an integer of more than 64 bits cannot be a column": 1, "`list`: a list of null and a list of several kinds cannot be a column": 2,
            "`deep`: an object cannot be a column": 1, "`tool_calls` of a turn: a list of an object cannot be a column": 2,
        }),
    ):  # fmt: skip
        report = convert_records(records, folder / form, form, copy=None)
        assert report.lost == lost, form
        new = reopened(report)
        gone = {"mixed", "big", "tools"} if form == "parquet" else set()
        assert [content(s) for s in new] == [content(s, without=gone) for s in records]
        written = json.loads((folder / form / "report.json").read_text())
        assert written["not_carried"] == lost and written["notes"] == dict(records.notes)
    assert "`tools` is not read" in records.notes


def test_mutated_records_are_carried_or_counted(folder, pool):
    """Converts what is accepted of random records into each form: a difference of a sample is a counted key of `meta`."""
    rng, known = random.Random(5), [ours for ours, _ in PAIRS]
    for name in ("a.png", "b.png", "a", "b", "c", "d", "x/b.png"):
        path = folder / "pool2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noisy_image(8, 8, len(name)).save(path, "PNG")
    values = [changed(rng, rng.choice(known)) for _ in range(160)]
    (folder / "r.json").write_text(json.dumps(values))
    records = opened(folder / "r.json", folder / "pool2", kind="messages", policy=Policy("skip", 1.0))
    kept = [i for i, sample in enumerate(records) if all(_is_there(image) for image in sample.images)]
    assert len(kept) > 40 and records.left_out > 40
    for form in FORMS:
        report = convert_records(records, folder / form, form, copy=True)
        new = list(reopened(report))
        assert len(new) == len(kept) == report.records
        assert report.bad_records == records.left_out + len(records) - len(kept)
        for i, sample in zip(kept, new, strict=True):
            differs = {key for key, value in records[i].meta.items() if sample.meta.get(key) != value}
            assert content(sample) == content(records[i], without=differs), (form, i)
            assert all(any(what.startswith(f"`{key[:40]}`:") for what in report.lost) for key in differs)


def _is_there(image):
    try:
        return bool(read_bytes(image))
    except UserError:
        return False


def test_bad_images_are_refused_or_listed(base, folder, pool):
    (pool / "b.png").write_bytes(b"no image")
    (pool / "x/b.png").unlink()
    for form in ("llava", "parquet", "webdataset"):
        with pytest.raises(UserError) as error:
            convert_records(base, folder / "new", form, copy=True)
        assert [p.code for p in error.value.problems] == ["image/file", "image/format"]
        assert (
            "base.json:1 (record 2" in error.value.problems[0].where
            and "x/b.png" in error.value.problems[0].where
        )
        assert not list(folder.glob("*new*"))
        skipping = replace(base, bad_records=Policy("skip", 1.0))
        report = convert_records(skipping, folder / form, form, copy=True)
        assert (report.records, report.bad_records) == (len(BASE) - 2, 2)
        listed = [json.loads(line) for line in (folder / form / "refused.jsonl").read_text().splitlines()]
        assert [(each["record"], each["code"]) for each in listed] == [(2, "image/file"), (3, "image/format")]
        keys = [sample.key for i, sample in enumerate(base) if i not in (2, 3)]
        assert [sample.key for sample in reopened(report)] == keys
    for path in pool.rglob("*.*"):
        path.write_bytes(b"")
    images_only = opened(_written(folder / "one.json", BASE[:2]), pool, policy=Policy("skip", 1.0))
    with pytest.raises(UserError) as error:
        convert_records(images_only, folder / "none", "llava", copy=True)
    assert error.value.problems[0].code == "records/empty" and not (folder / "none").exists()


@pytest.mark.parametrize("form", FORMS[:-1])
def test_images_that_are_named_and_not_there_are_refused_or_listed(base, folder, pool, form):
    (pool / "a.png").unlink()
    (pool / "e.bmp").unlink()
    (pool / "e.bmp").mkdir()
    without = [0, 2, 3]  # records that name one of the two
    with pytest.raises(UserError) as error:
        convert_records(base, folder / "new", form, copy=False)
    assert [p.code for p in error.value.problems] == ["records/missing-image"] * 3
    assert [
        f"record {i}," in p.where or f"record {i})" in p.where
        for i, p in zip(without, error.value.problems, strict=True)
    ] == [True] * 3
    assert "no regular file" in error.value.problems[2].got and not list(folder.glob("*new*"))
    report = convert_records(
        replace(base, bad_records=Policy("skip", 1.0)), folder / "some", form, copy=False
    )
    assert (report.records, report.bad_records) == (len(BASE) - 3, 3)
    assert [(bad.record, bad.code, bad.key) for bad in report.refused] == [
        (i, "records/missing-image", "image") for i in without
    ]
    assert [sample.key for sample in reopened(report)] == [
        sample.key for i, sample in enumerate(base) if i not in without
    ]


def _written(path, value):
    path.write_text(json.dumps(value))
    return path


def test_a_conversion_that_fails_leaves_nothing(base, folder, monkeypatch):
    for form, writer in (("llava", "JsonWriter"), ("parquet", "TableWriter"), ("webdataset", "ShardWriter")):
        add = getattr(convert_module, writer).add

        def full(self, row, lost, add=add):
            if row.number == 5:
                raise OSError(28, "No space left on device")
            return add(self, row, lost)

        monkeypatch.setattr(getattr(convert_module, writer), "add", full)
        with pytest.raises(OSError, match="No space"):
            convert_records(base, folder / "new", form, copy=True)
        assert not [path for path in folder.iterdir() if "new" in path.name]


def test_a_folder_in_use_and_images_without_files_are_refused(base, folder):
    (folder / "full").mkdir()
    (folder / "full" / "x").write_text("mine")
    for to, got in (("full", "not empty"), ("base.json", "a file")):
        with pytest.raises(UserError) as error:
            convert_records(base, folder / to, "webdataset", copy=False)
        assert [p.code for p in error.value.problems] == ["data/convert-images", "data/convert-not-empty"]
        assert got in error.value.problems[1].got
    report = convert_records(base, folder / "table", "parquet", copy=None)
    with pytest.raises(UserError) as error:
        convert_records(reopened(report), folder / "new", "llava", copy=False)
    assert [p.code for p in error.value.problems] == ["data/convert-images"]
    assert (folder / "full" / "x").read_text() == "mine"


def test_hostile_names_of_cells_stay_in_the_folder(folder, pool):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = ["../../out.png", "/tmp/out.png", ".hidden.png", "a.png/../../b.png", "x.png", "X.png", "x.png/y.png", "a.exe",
             "images/records.json", "", None, "a\0.png", "report.json"]  # fmt: skip
    for n in range(len(names)):
        noisy_image(9, 9, n).save(pool / f"n{n}.png")
    turn = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "A."}]
    cells = [{"bytes": (pool / f"n{n}.png").read_bytes(), "path": name} for n, name in enumerate(names)]
    parquet.write_table(arrow.table({"messages": [turn] * len(names), "image": cells}), folder / "t.parquet")
    records, before = opened(folder / "t.parquet"), set(folder.rglob("*"))
    report = convert_records(records, folder / "new", "llava", copy=True)
    assert [content(sample) for sample in reopened(report)] == [content(sample) for sample in records]
    made = {path for path in set(folder.rglob("*")) - before if path.is_file() and "cache" not in path.parts}
    new = folder / "new"
    assert (
        made == {new / "records.json", new / "report.json", *new.glob("images/**/*.png")} and len(made) == 15
    )
    assert report.lost == {"the name of an image": 10}


def test_large_data_is_divided(folder, pool, monkeypatch):
    from lmmkit.data.convert import shard_writer, table_writer

    parquet = pytest.importorskip("pyarrow.parquet")
    values = [BASE[0] | {"id": n} for n in range(130)]
    records = opened(_written(folder / "r.json", values), pool)
    convert_records(records, folder / "p", "parquet", copy=True)
    meta = parquet.ParquetFile(folder / "p" / "records.parquet").metadata
    assert [meta.row_group(n).num_rows for n in range(meta.num_row_groups)] == [100, 30]
    monkeypatch.setattr(shard_writer, "RECORDS", 60)
    report = convert_records(records, folder / "w", "webdataset", copy=True)
    assert (
        report.recipe["records"].endswith("{000000..000002}.tar") and len(list(folder.glob("w/*.tar"))) == 3
    )
    want = [content(sample) for sample in records]
    assert [content(sample) for sample in reopened(report)] == want
    monkeypatch.setattr(table_writer, "BYTES", 3 * (pool / "a.png").stat().st_size)
    convert_records(records, folder / "q", "parquet", copy=True)
    assert parquet.ParquetFile(folder / "q" / "records.parquet").metadata.row_group(0).num_rows == 3


def test_kinds_are_found(folder):
    llava, messages = {"conversations": turns("Hi", "Ho")}, {"messages": []}
    odd = {"conversations": [{"role": "user", "content": "x"}]}
    for name, value, kind in (
        ("a.json", [llava], "llava"), ("b.json", [messages], "messages"), ("c.json", [odd], "messages"),
        ("d.json", coco(), "coco"), ("e.json", [], "messages"), ("f.json", [llava | messages], "messages"),
    ):  # fmt: skip
        assert source_kind(_written(folder / name, value), None) == kind
    (folder / "g.jsonl").write_text(json.dumps(llava) + "\n")
    assert source_kind(folder / "g.jsonl", None) == "llava"
    assert source_kind(folder / "x.tar", None) == source_kind(folder / "{0..3}.tar", None) == "webdataset"
    assert source_kind(folder, None) == source_kind(folder / "*.parquet", None) == "messages"
    with pytest.raises(UserError):
        source_kind(folder / "none.json", None)


VALUES = {
    "when": datetime.datetime(2024, 1, 2), "day": datetime.date(2024, 1, 2), "took": datetime.timedelta(1),
    "cost": decimal.Decimal("1.5"), "parts": [datetime.date(2024, 1, 2)], "map": [("a", float("nan"))],
    "deep": {"x": {"y": decimal.Decimal(1)}}, "fine": "x", "binary": 3,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_values_that_a_form_lacks_are_counted(folder, form):
    """Converts turns of a table, which may have fields of any type."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    turn = [{"role": who, "content": who, **VALUES} for who in ("user", "assistant")]
    of_maps = arrow.map_(arrow.string(), arrow.float64())
    plain = arrow.array([{key: value for key, value in each.items() if key != "map"} for each in turn])
    fields = [*plain.type, arrow.field("map", of_maps)]
    messages = arrow.array([turn], arrow.list_(arrow.struct(fields)))
    parquet.write_table(arrow.table({"messages": messages}), folder / "t.parquet")
    records = opened(folder / "t.parquet")
    report = convert_records(records, folder / "new", form, copy=None)
    assert {key.partition("`")[2].partition("`")[0] for key in report.lost} == set(VALUES) - {
        "fine",
        "binary",
    }
    assert set(report.lost.values()) == {1} and "`map` of a turn" in str(report.lost)
    new = reopened(report)
    assert [content(sample) for sample in new] == [content(sample) for sample in records]
    again = convert_records(new, folder / "again", "messages", copy=None)
    (value,) = json.loads((folder / "again" / "records.json").read_text())
    assert (
        value["messages"][0] == {"role": "user", "content": "user", "fine": "x", "binary": 3}
        and not again.lost
    )


@pytest.mark.parametrize("form", FORMS)
def test_photos_of_cameras_that_store_several_images(folder, form):
    """Converts a JPEG to which Pillow gives a format of its own."""
    (folder / "pool").mkdir()
    noisy_image(20, 10, 1).save(
        folder / "pool/a.jpg", "MPO", save_all=True, append_images=[noisy_image(10, 5, 2)]
    )
    with Pil.open(folder / "pool/a.jpg") as image:
        assert image.format == "MPO"
    records = opened(_written(folder / "r.json", [BASE[0] | {"image": "a.jpg"}]), folder / "pool")
    report = convert_records(records, folder / "new", form, copy=True)
    assert [content(sample) for sample in reopened(report)] == [content(sample) for sample in records]


@pytest.mark.parametrize("form", FORMS)
def test_the_keys_that_a_conversion_prints_are_those_of_a_source(folder, pool, form):
    """Converts records without images too, whose source has no folder of images."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    turn = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    parquet.write_table(arrow.table({"messages": [turn]}), folder / "t.parquet")
    for name, records in (
        ("t", opened(folder / "t.parquet")),
        ("b", opened(_written(folder / "b.json", BASE), pool)),
    ):
        report = convert_records(records, folder / name, form, copy=None)
        source = Source(**report.recipe, template="vicuna_v1", image_fit="pad")
        assert not list(check_source(source, "data.s", None))


def test_a_place_that_the_system_refuses_is_a_fault_of_the_machine(base, folder, monkeypatch):
    for code in (errno.ENOENT, errno.EIO, errno.EACCES, errno.ENOTDIR):

        def refuse(*args, code=code, **kwargs):
            raise OSError(code, "refused")

        monkeypatch.setattr(convert_module, "TemporaryDirectory", refuse)
        with pytest.raises(MachineError) as error:
            convert_records(base, folder / "new", "llava", copy=True)
        (problem,) = error.value.problems
        assert problem.code == "files/cannot-write" and problem.where == str(folder / "new")
