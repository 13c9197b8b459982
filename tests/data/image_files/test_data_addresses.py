"""Images that records contain as `data:` addresses: those of the same images in files, and faults by name."""

import base64
import json
import pickle
import random
from dataclasses import replace

import pyarrow
import pytest
from pyarrow import parquet

from lmmkit.api.model_info import ImageSpec
from lmmkit.data.convert.convert_records import convert_records
from lmmkit.data.image_files.data_addresses import MARK, address_bytes, address_in, address_places, mark_of
from lmmkit.data.image_files.image_file import image_place, image_size, read_bytes
from lmmkit.data.images import read_image
from lmmkit.data.sources import messages_records
from lmmkit.data.sources.bad_records import STRICT, Policy
from lmmkit.data.sources.records import check_images, missing_images, open_records
from lmmkit.errors import UserError
from tests.data.test_images import noisy_image

MOST = 10**6
NAMES = ("a.png", "b.jpg", "x/c.webp")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LMMKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images" / "x").mkdir(parents=True)
    for n, name in enumerate(NAMES):
        noisy_image(20, 10 + n, n).save(tmp_path / "images" / name)
    return tmp_path


def opened(
    folder, values, name="r.json", *, images=None, policy=STRICT, columns=None, change=lambda text: text
):
    path = folder / name
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(values), path)
    else:
        lines = (
            "".join(json.dumps(v) + "\n" for v in values) if name.endswith(".jsonl") else json.dumps(values)
        )
        path.write_text(change(lines))
    return open_records(
        "set", records=path, images=images and folder / images, template="vicuna_v1", image_fit="pad",
        columns={} if columns is None else columns, bad_records=policy,
    )  # fmt: skip


def problems(*args, **options):
    with pytest.raises(UserError) as error:
        opened(*args, **options)
    return error.value.problems


def address(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def part(url):
    return {"type": "image_url", "text": None, "image_url": {"url": url}}


def text(words):
    return {"type": "text", "text": words, "image_url": None}


def turns(*content):
    return [{"role": "user", "content": list(content)}, {"role": "assistant", "content": [text("A.")]}]


def records(name):
    """Returns records in OpenAI's and ShareGPT's form. `name`: what names an image in them."""
    a, b, c = map(name, NAMES)
    marked = [{"role": "user", "content": [text("<image> or <image>?")]}, *turns()[1:]]
    return [
        {"messages": turns(part(a), text("What?")), "images": None},
        {"messages": turns(text("Before "), part(b), text(" and "), part(c), text("?")), "images": None},
        {"messages": turns(text("Hi")), "images": None},
        {"messages": turns(part(a), text("Again?"), part(a)), "images": None},
        {"messages": marked, "images": [c, b]},
    ]


def named(sample):
    """Returns a sample with the bytes of its images in place of their places."""
    return replace(sample, images=tuple(read_bytes(image)[0] for image in sample.images))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["r.json", "r.jsonl", "r.parquet"])
def test_samples_are_those_of_the_same_images_in_files(folder, name):
    theirs = opened(folder, records(str), f"files.{name}", images="images")
    values = records(lambda name: address((folder / "images" / name).read_bytes()))
    escapes = (
        [lambda text: text]
        if name == "r.parquet"
        else [lambda text: text, lambda text: text.replace("/", "\\/")]
    )
    for change in escapes:
        ours = pickle.loads(pickle.dumps(opened(folder, values, name, change=change)))
        assert [named(sample) for sample in ours] == [named(sample) for sample in theirs] and len(ours) == 5
        assert ours.words_N.tolist() == theirs.words_N.tolist() and ours.notes == theirs.notes == {}
    assert ours.indexed.contains_images and not theirs.indexed.contains_images
    assert not missing_images(ours) and not check_images(ours) and ours.indexed.image_folder == ""
    spec = ImageSpec(size=8, grid=(2, 2), width=8)
    pairs = [
        (a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x.images, y.images, strict=True)
    ]
    for a, b in pairs:
        assert read_image(a, spec, "pad").equal(read_image(b, spec, "pad")) and image_size(a) == image_size(b)
        assert ours.indexed.names(0, ("data:messages:" + a.address,)) == ("",)
    every = [image for _, image in ours.indexed.all_images()]
    assert [read_bytes(image)[0] for image in every[:3]] == [
        (folder / "images" / name).read_bytes() for name in NAMES
    ]
    assert len(set(map(image_place, every))) == len(every) == ours.indexed.index.meta["images"] == 5


def test_parquet_cells_mix_bytes_files_and_addresses(folder):
    data = [(folder / "images" / name).read_bytes() for name in NAMES]
    cell = [
        {"bytes": data[0], "path": "n.png"},
        {"bytes": None, "path": "b.jpg"},
        {"bytes": None, "path": address(data[2])},
    ]
    value = {
        "messages": [{"role": "user", "content": "<image>" * 3}, {"role": "assistant", "content": "A."}],
        "images": cell,
    }
    found = opened(folder, [value], "r.parquet", images="images")
    assert [read_bytes(image)[0] for image in found[0].images] == data
    _, record = found.indexed.record(0), found.read(0)[1]
    assert found.indexed.names(0, record.images) == ("n.png", "b.jpg", "")
    (problem,) = problems(folder, [value], "r.parquet")
    assert problem.code == "records/no-image-folder" and "b.jpg" in problem.got


def test_a_change_of_an_image_is_a_change_of_the_data(folder):
    values = records(lambda name: address((folder / "images" / name).read_bytes()))
    for name in ("r.jsonl", "r.parquet"):
        before = opened(folder, values, name).identity()
        assert opened(folder, values, name).identity() == before
        other = records(
            lambda name: address((folder / "images" / name).read_bytes() + b"x" * (name == "b.jpg"))
        )
        assert opened(folder, other, name).identity() != before


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("data:image/png;base64,AAA", "no base64"), ("data:image/png;base64,AA-_", "no base64"),
        ("data:image/png;base64,AA==AA==", "no base64"), ("data:image/png;base64,A\u00e9==", "no base64"),
        ("data:image/png;base64,", "empty"), ("data:image/png,AAAA", "not in base64"), ("data:image/png;base64", "no address"),
        ("data:text/html;base64,AAAA", "no address"), ("data:", "no address"), ("DATA:a.png", "no address"),
        (f"data:image/png;base64,{'A' * 4000}", "more than 1000 bytes"), ("data:messages:" + "0" * 32, "no address"),
    ],
)  # fmt: skip
def test_a_wrong_address_is_named_with_its_record(folder, monkeypatch, url, word):
    monkeypatch.setattr(messages_records, "MAX_BYTES", 1000)
    good = {"messages": turns(text("Hi"))}
    for name in ("r.json", "r.jsonl", "r.parquet"):
        bad = {"messages": turns(part(url), text("?"))}
        (problem,) = problems(folder, [good, bad], name)
        assert (
            problem.code == "records/data-address" and word in problem.got and "(record 1)" in problem.where
        )
        assert len(problem.got) < 400
    found = opened(
        folder, [good, bad, {"messages": turns(text("<image>")), "images": [url]}], policy=Policy("skip")
    )
    assert len(found) == 1 and [bad.key for bad in found.known_bad] == ["messages.0.content.0", "images"]


def test_what_is_no_image_is_refused_where_images_are_read(folder):
    png = (folder / "images" / "a.png").read_bytes()
    urls = [
        address(b"Hello, world!"),
        address(png[: len(png) // 2]),
        address(b"<svg/>", "image/svg+xml"),
        address(png, "image/gif"),
    ]
    for name in ("r.jsonl", "r.parquet"):
        found = opened(folder, [{"messages": turns(part(url), text("?"))} for url in urls], name)
        codes = []
        for sample in found:
            try:
                read_image(sample.images[0], ImageSpec(size=8, grid=(2, 2), width=8), "pad")
                codes.append("")
            except UserError as error:
                (problem,) = error.problems
                codes.append(problem.code)
                assert f"`data:` address {sample.images[0].address}" in problem.where
        assert codes == ["image/format", "image/damaged", "image/format", ""]
        assert [p.code for p in check_images(found)] == ["image/format"] * 2


def test_addresses_of_the_network_and_of_other_kinds_say_why(folder):
    for url in ("https://example.org/a.png", "HTTP://x/a.png", "s3://bucket/a.png"):
        for images in ("images", None):
            (problem,) = problems(folder, [{"messages": turns(part(url), text("?"))}], images=images)
            assert problem.code == "records/image-path" and "network" in problem.got
    value = {
        "image": address(b"x"),
        "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A."}],
    }
    (folder / "l.json").write_text(json.dumps([value, value | {"image": "data:messages:" + "0" * 32}]))
    with pytest.raises(UserError) as error:
        open_records(
            "s", records=folder / "l.json", images=folder / "images", template="vicuna_v1", image_fit="pad"
        )
    assert [p.code for p in error.value.problems] == ["records/image-path"] * 2
    assert all("`messages` reads it" in p.got for p in error.value.problems)
    (problem,) = problems(folder, [{"messages": turns(part("a.png"), text("?"))}])
    assert problem.code == "records/no-image-folder" and "a.png" in problem.got


@pytest.mark.parametrize("form", ["llava", "messages-jsonl", "parquet", "webdataset"])
def test_a_conversion_writes_the_images(folder, form):
    source = opened(folder, records(lambda name: address((folder / "images" / name).read_bytes())), "r.jsonl")
    report = convert_records(source, folder / "new", form, copy=None)
    assert report.images == 7 and report.lost == {}
    recipe, mapped = report.recipe, {} if form in ("messages-jsonl", "parquet") else None
    found = open_records(
        "set", records=folder / "new" / recipe["records"].rpartition("/")[2], template="vicuna_v1", image_fit="pad",
        images=folder / "new" if "images" in recipe else None, columns=mapped,
    )  # fmt: skip
    assert [replace(named(s), key="") for s in found] == [replace(named(s), key="") for s in source]
    with pytest.raises(UserError, match="data/convert-images"):
        convert_records(source, folder / "other", "messages", copy=False)


def test_mutated_addresses_are_read_as_a_decoder_reads_them_or_refused(folder):
    """Compares with Python's plain decoder on 2,000 addresses with a few changed characters."""
    rng, good = random.Random(0), 0
    for _ in range(2000):
        url = list(
            address(rng.randbytes(rng.randrange(1, 9)), rng.choice(["image/png", "image/x;charset=a", ""]))
        )
        for _ in range(rng.randrange(3)):
            url[rng.randrange(len(url))] = rng.choice("A=+/-,;:\n \u00e9data")
        url = "".join(url)
        try:
            found = address_bytes(url, MOST)
        except ValueError as error:
            assert str(error)
            continue
        head, _, body = url.partition(",")
        assert head.lower().startswith("data:") and head.lower().endswith(";base64")
        assert found == base64.b64decode("".join(body.split())) and found
        good += 1
    assert 500 < good < 1900


def test_an_address_is_found_by_its_hash(folder):
    one, other = address(b"one"), address(b"other")
    mark = MARK.fullmatch(mark_of("messages", one))
    assert mark is not None and mark[1] == "messages"
    assert address_in({"a": [other, {"b": (1, None, one)}], "c": one[:-1]}, mark[2]) == one
    assert address_in([other, {"b": "x"}], mark[2]) is None


def test_the_places_of_addresses_in_a_text_are_those_of_its_strings():
    """Compares with a walk through the parsed value, on texts that mention addresses too."""
    rng, found = random.Random(0), 0
    urls = [address(rng.randbytes(n)) for n in range(1, 9)]
    odd = [
        '"data:',
        'a "data:image/png;base64,AAAA" b',
        '\\"data:',
        "\u00e9\\",
        "data:",
        "",
        "data:image/png;base64,\u00e9",
    ]
    for _ in range(300):
        value = {"a": rng.choices(urls + odd, k=4), rng.choice(odd): [{"b": rng.choice(urls + odd)}]}
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
        data = (text.replace("/", "\\/") if rng.random() < 0.5 else text).encode()
        places = address_places(data)
        for url in {*value["a"], value[list(value)[1]][0]["b"]}:
            digest = mark_of("images", url)[12:]
            if digest in places:
                start, size = places[digest]
                assert json.loads(data[start : start + size]) == url
                found += 1
            else:
                assert url not in urls or any('"data:' in each for each in (*value["a"], *value))
    assert found > 500


def test_each_of_several_images_of_a_record_is_read_alone(folder):
    values = records(lambda name: address((folder / "images" / name).read_bytes()))
    for change in (lambda text: text, lambda text: text.replace("data:", "d\\u0061ta:")):
        found = opened(folder, values, "r.jsonl", change=change)
        one, two = found[1].images
        assert [read_bytes(image)[0] for image in (one, two)] == [
            (folder / "images" / name).read_bytes() for name in NAMES[1:]
        ]
        whole = tuple(int(found.indexed.index.arrays["records"][1][key]) for key in ("offset", "length"))
        alone = one.part != whole and two.part != whole and one.part[0] + one.part[1] < two.part[0]  # type: ignore[index]
        assert alone or one.part == two.part == whole
        assert alone == (b"\\u0061" not in (folder / "r.jsonl").read_bytes())
        assert {image for _, image in found.indexed.all_images()} >= {one, two}


@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
def test_a_record_of_json_mixes_files_and_addresses(folder, name):
    data = [(folder / "images" / each).read_bytes() for each in NAMES]
    inside = turns(part("a.png"), part(address(data[1])), part("x/c.webp"), text("?"))
    column = [{"role": "user", "content": "<image>" * 3}, *turns()[1:]]
    values = [{"messages": inside}, {"messages": column, "images": ["a.png", address(data[1]), "x/c.webp"]}]
    found = opened(folder, values, name, images="images")
    assert [[read_bytes(image)[0] for image in sample.images] for sample in found] == [data, data]
    assert found.indexed.names(0, found.read(0)[1].images) == ("a.png", "", "x/c.webp")
    assert not missing_images(found) and not check_images(found)
    (folder / "images" / "a.png").unlink()
    assert [p.code for p in missing_images(found)] == ["records/missing-image"]
    assert [p.code for p in check_images(found)] == ["image/file"]
