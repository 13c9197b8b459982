"""WebDataset shards: read as the webdataset package reads them; broken ones are problems."""

import io
import json
import os
import pickle
import random
import struct
import tarfile
from dataclasses import replace

import pytest
import torch

from lmmkit.data.image_files.image_file import read_bytes
from lmmkit.data.images import read_image
from lmmkit.data.sources.records import check_images, missing_images, open_records
from lmmkit.data.sources.tar_members import members
from lmmkit.errors import UserError
from lmmkit.plan.prepare import prepare
from tests.conftest import PLAIN
from tests.data.sources.test_records import conversation
from tests.data.test_images import SPEC, noisy_image

webdataset = pytest.importorskip("webdataset")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMMKIT_CACHE", str(tmp_path / "cache"))


def png(seed=0):
    file = io.BytesIO()
    noisy_image(40, 30, seed).save(file, "PNG")
    return file.getvalue()


def entry(i, **more):
    return {"id": str(i), **conversation("<image>\nWhat?", f"Thing {i}.", image="ignored.png"), **more}


def written(folder, count=10, shards=2):
    for n in range(shards):
        with webdataset.TarWriter(str(folder / f"s-{n:03d}.tar")) as sink:
            for i in range(n * count // shards, (n + 1) * count // shards):
                sink.write({"__key__": f"k/{i:04d}", "png": png(i), "json": json.dumps(entry(i)).encode()})
    return folder / f"s-{{000..{shards - 1:03d}}}.tar"


def opened(pattern, **options):
    return open_records("s", records=pattern, images=None, template="vicuna_v1", image_fit="crop", **options)


def test_what_the_package_writes_is_read_as_the_package_reads_it(tmp_path):
    pattern = written(tmp_path)
    records = pickle.loads(pickle.dumps(opened(pattern)))
    theirs = list(webdataset.WebDataset(str(pattern), shardshuffle=False))
    assert len(records) == len(theirs) == 10
    for ours, sample in zip(records, theirs, strict=True):
        want = json.loads(sample["json"])
        assert ours.key == f"s:{want['id']}"
        assert ours.turns[1].text == want["conversations"][1]["value"]
        (image,) = ours.images
        with open(image.path, "rb") as file:
            file.seek(image.part[0])
            assert file.read(image.part[1]) == sample["png"]
        (tmp_path / "one.png").write_bytes(sample["png"])
        assert torch.equal(read_image(image, SPEC, "crop"), read_image(tmp_path / "one.png", SPEC, "crop"))
    assert records.where(7) == f"{tmp_path / 's-001.tar'} (record 7)"
    assert len(opened(tmp_path / "*.tar")) == 10 and len(opened(tmp_path / "s-000.tar")) == 5
    assert missing_images(records) == check_images(records) == []


def test_records_without_and_with_several_images(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        text = conversation("Hi", "Ho", image=None)
        sink.write({"__key__": "a", "json": json.dumps(text).encode()})
        sink.write(
            {
                "__key__": "b",
                "0.png": png(1),
                "1.png": png(2),
                "json": json.dumps(conversation("<image><image>x", "y") | {"images": ["z.png"]}).encode(),
            }
        )
    one, two = opened(tmp_path / "a.tar")
    assert one.images == () and [turn.images for turn in two.turns] == [2, 0] and len(two.images) == 2
    assert opened(tmp_path / "a.tar").words_N.tolist() == [-2, 2]


def test_marks_in_the_names_of_folders_are_plain_characters(tmp_path):
    for name in ("a {x,y}", "b [1]", "c {0..3}"):
        (tmp_path / name).mkdir()
        written(tmp_path / name)
        for pattern in ("s-{000..001}.tar", "*.tar", "s-000.tar"):
            assert len(opened(tmp_path / name / pattern)) == (5 if pattern == "s-000.tar" else 10)
    for name in ("x" * 300 + ".tar", "x" * 300 + "/*.tar"):
        with pytest.raises(UserError, match="records/file"):
            opened(tmp_path / name)
    written(tmp_path)
    (tmp_path / "s-000.tar").rename(tmp_path / "s-{0,1}.tar")
    assert len(opened(tmp_path / "s-{0,1}.tar")) == 5


def test_images_are_in_the_order_of_their_numbers_and_other_members_are_counted(tmp_path):
    """Reads a shard as `tar --sort=name` writes it, in which 10 comes before 2."""
    value = json.dumps(conversation("<image>" * 12 + "x", "y", image=None)).encode()
    members = {f"{n}.png": png(n) for n in range(12)} | {"json": value, "txt": b"words", "mp4": b"film"}
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        sink.write({"__key__": "a"} | {kind: members[kind] for kind in sorted(members)})
        sink.write({"__key__": "b", "left.png": png(1), "a.png": png(2), "txt": b"words"}
                   | {"json": json.dumps(conversation("<image><image>x", "y", image=None)).encode()})  # fmt: skip
    assert sorted(members)[2] == "10.png"
    records = opened(tmp_path / "a.tar")
    assert [read_bytes(image)[0] for image in records[0].images] == [png(n) for n in range(12)]
    assert [read_bytes(image)[0] for image in records[1].images] == [
        png(2),
        png(1),
    ]  # as the package sorts them
    assert records.notes == {"KEY.mp4 is not read": 1, "KEY.txt is not read": 2}


def test_batches_are_those_of_the_same_records_in_a_folder(tiny, scenes, tmp_path):
    values = json.loads((scenes / "finetune.json").read_text())
    with webdataset.ShardWriter(str(tmp_path / "q-%02d.tar"), maxcount=50, verbose=0) as sink:
        for i, each in enumerate(values):
            data = (scenes / each["image"]).read_bytes()
            sink.write(
                {
                    "__key__": f"{i:06d}",
                    "json": json.dumps(each).encode(),
                    each["image"].rpartition(".")[2]: data,
                }
            )
    line = "questions: {kind: llava, records: finetune.json, images: ., "
    shards = PLAIN.replace(line, f'questions: {{kind: webdataset, records: "{tmp_path}/*.tar", ')
    ours, theirs = (prepare(tiny(text=text)).pipeline("finetune").step(3) for text in (shards, PLAIN))
    for a, b in zip(ours, theirs, strict=True):
        assert a.views == b.views
        assert torch.equal(a.id_T, b.id_T) and torch.equal(a.pixels_ICXY, b.pixels_ICXY)


def test_bad_records_are_reported_with_their_shard(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        sink.write({"__key__": "good", "png": png(), "json": json.dumps(entry(0)).encode()})
        sink.write({"__key__": "alone", "png": png()})
        sink.write({"__key__": "torn", "json": b'{"id": '})
        sink.write({"__key__": "none", "json": json.dumps(entry(3)).encode()})
        sink.write({"__key__": "bytes", "json": b"\xff"})
    with pytest.raises(UserError) as error:
        opened(tmp_path / "a.tar")
    found = error.value.problems
    assert [p.code.partition("/")[2] for p in found] == ["shard", "json", "image-markers", "json"]
    assert [p.where for p in found][:2] == [
        f"{tmp_path / 'a.tar'} (record {i}, id '{k}')" for i, k in ((1, "alone"), (2, "torn"))
    ]


def plain_tar(*entries, format=tarfile.GNU_FORMAT):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, data, *more in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in dict(*more).items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_tarfile_finds_them(tmp_path, format):
    long = "d" * 90 + "/" + "n" * 90 + ".json"
    names = ["a.json", long, "b.png"] + (
        [] if format == tarfile.USTAR_FORMAT else ["\u732b" * 60 + ".json", "x/" * 120 + "y.png"]
    )
    data = plain_tar(*((name, bytes([i]) * (i * 700)) for i, name in enumerate(names)), format=format)
    (tmp_path / "a.tar").write_bytes(data)
    with tarfile.open(tmp_path / "a.tar") as tar:
        want = [(info.name, info.offset_data, info.size) for info in tar]
    assert [tuple(member) for member in members(tmp_path / "a.tar")] == want


def test_links_devices_and_names_that_climb_lead_nowhere(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    kinds = {
        tarfile.SYMTYPE: str(secret),
        tarfile.LNKTYPE: str(secret),
        tarfile.CHRTYPE: "",
        tarfile.FIFOTYPE: "",
        tarfile.DIRTYPE: "",
    }
    entries = [
        (f"k.{i}.png", b"", {"type": kind, "linkname": to}) for i, (kind, to) in enumerate(kinds.items())
    ]
    good = json.dumps(entry(0)).encode()
    for key in ("k", "../../k", "/etc/k", "a\0b"):
        (tmp_path / "a.tar").write_bytes(plain_tar(*entries, (f"{key}.json", good), (f"{key}.png", png())))
        before = sorted(os.listdir(tmp_path))
        (sample,) = opened(tmp_path / "a.tar") if key != "a\0b" else (None,)
        assert sample is None or len(sample.images) == 1
        assert sorted(os.listdir(tmp_path)) == sorted({*before, "cache"})


def broken_shards():
    whole = plain_tar(("a.json", json.dumps(entry(0)).encode()), ("a.png", png()))
    yield from ((f"cut at {n}", whole[:n]) for n in (0, 1, 511, 512, 700, 1024, 1500, len(whole) - 9000))
    yield "no tar", b"x" * 5000
    yield "gz", b"\x1f\x8b" + bytes(2000)
    yield "zip", b"PK\x03\x04" + bytes(2000)
    yield "flip", whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    second = whole.index(b"a.png")
    yield "flip in the second", whole[: second + 100] + b"x" + whole[second + 101 :]
    sizes = (
        b"77777777777\0",
        b"zzzzzzzzzzz\0",
        b"\x80" + b"\xff" * 11,
        b"\xff" * 12,
        b"-0000000001\0",
        b"-0000001000\0",
    )
    for size in sizes:
        yield f"size {size!r}", summed(whole[:124] + size + whole[136:])
        yield (
            f"second size {size!r}",
            whole[:second] + summed(whole[second : second + 124] + size + whole[second + 136 :]),
        )
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        yield (
            f"negative {kind!r}",
            summed(whole[:124] + b"-0000001000\0" + whole[136:156] + kind + whole[157:]),
        )
        yield (
            f"huge {kind!r}",
            summed(whole[:124] + b"\x80" + b"\xff" * 11 + whole[136:156] + kind + whole[157:]),
        )
        yield f"endless {kind!r}", plain_tar(*[("a", b"a\0", {"type": kind})] * 3000)
    yield "holes", plain_tar(("a.json", b"", {"type": tarfile.GNUTYPE_SPARSE}))
    holes = pax_record(b"GNU.sparse.major=1\n") + pax_record(b"GNU.sparse.minor=0\n")
    endless = pax_record(b"size=" + b"9" * 5000 + b"\n")
    for records in (holes, pax_record(b"GNU.sparse.map=0,1\n"), pax_record(b"size=-1024\n"), endless):
        header = ("h", records, {"type": tarfile.XHDTYPE})
        yield f"pax {records[:30]!r}", plain_tar(header, ("a.json", b"1\n" * 99))
    yield "pax digits", plain_tar(("h", b"1" * 60_000, {"type": tarfile.XHDTYPE}), ("a.json", b"{}"))
    yield "no UTF-8", plain_tar(("a\udcff.json", b"{}"))
    yield "long name", plain_tar(("x" * 70_000 + ".json", b""))
    yield "twice", plain_tar(("a.json", b"{}"), ("a.json", b"{}"))
    pax = plain_tar(("\u732b" * 60 + ".json", b"{}"), format=tarfile.PAX_FORMAT)
    yield "pax size", summed(pax[:512] + b"99999999 path=x\n".ljust(512, b"\0") + pax[1024:])


def pax_record(text):
    """`text` behind its length, which counts its own digits."""
    length = len(text) + 2
    while length != len(b"%d %s" % (length, text)):
        length += 1
    return b"%d %s" % (length, text)


def summed(data):
    header = data[:148] + b" " * 8 + data[156:512]
    return header[:148] + b"%06o\0 " % sum(header) + header[156:] + data[512:]


@pytest.mark.parametrize(
    ("name", "data"), list(broken_shards()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_broken_shards_are_problems(tmp_path, name, data):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UserError) as error:
        opened(tmp_path / "a.tar")
    assert {p.code for p in error.value.problems} <= {"records/shard", "records/file"}
    assert all(str(tmp_path / "a.tar") in p.where and p.expected and p.hint for p in error.value.problems)


def test_flipped_bytes_never_raise_anything_else(tmp_path):
    whole = bytearray(
        plain_tar(*((f"{i}.json", json.dumps(entry(i)).encode()) for i in range(3)), ("2.png", png()))
    )
    rng = random.Random(0)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "a.tar").write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            for sample in opened(tmp_path / "a.tar"):
                for image in sample.images:
                    read_image(image, SPEC, "crop")
        except UserError as error:
            assert all(p.where and p.hint for p in error.problems)


def test_missing_shards_and_endless_patterns(tmp_path):
    for name in ("none.tar", "*.tar", "{0..99999999}.tar"):
        with pytest.raises(UserError) as error:
            opened(tmp_path / name)
        assert error.value.problems[0].code == "records/file"
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(UserError):
        opened(tmp_path / "pipe.tar")


def test_each_name_of_a_pattern_is_a_shard_and_none_is_another_one_too(tmp_path):
    folder = tmp_path / "a [1]"
    folder.mkdir()
    written(folder, 2)
    for name, got in (
        ("s-{000..002}.tar", "s-002.tar"), ("s-{000,009,001}*", "no such file as s-009*"),
        ("{s,t,u}-*.tar", "t-*.tar, and for 1 more names"), ("s-{000,000}.tar", "one file"),
        ("{s-*,s-001}.tar", "one file"), ("s-{*0,0*}.tar", "one file"),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            opened(folder / name)
        (problem,) = error.value.problems
        assert problem.code == "records/file" and got in f"{problem.where} {problem.got}", name
    assert len(opened(folder / "s-{*0,*1}.tar")) == 2


def test_a_shard_that_changes_during_a_run_is_a_problem(tmp_path):
    records = opened(written(tmp_path))
    assert records[0].key == "s:0"
    with open(tmp_path / "s-001.tar", "ab") as file:
        file.write(struct.pack("x"))
    with pytest.raises(UserError) as error:
        records[9]
    assert error.value.problems[0].code == "records/changed"
    identity = records.identity()
    assert replace(records, template="plain").identity() != identity


def test_a_nul_in_a_pattern_is_a_problem(tmp_path):
    with pytest.raises(UserError) as error:
        opened(f"{tmp_path}/a\0b.tar")
    assert "NUL" in error.value.problems[0].got
