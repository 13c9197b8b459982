"""Junk of a fixed seed: each piece is quickly accepted, or reported as a problem with its place."""

import json
import random
import resource
import signal
from contextlib import contextmanager

import pytest

from lmmkit.data.image_files.image_file import FORMATS, check_header
from lmmkit.data.images import read_image
from lmmkit.data.sources.json_records import parse_record
from lmmkit.data.sources.record_parser import RecordParser, measure_record
from lmmkit.data.sources.records import Policy, open_records
from lmmkit.errors import UserError
from tests.data.sources.test_index_cache import records_in
from tests.data.sources.test_records import GOOD, conversation, mutate
from tests.data.test_images import SPEC, flat, noisy_image, paletted

BASE = [
    GOOD, conversation("Hi \u732b", "Hello", image=None), conversation("<image><image> x", "y", "z", "w", image=["a.png", "b/c.png"]),
    GOOD | {"type": "short", "hops": 2}, GOOD | {"conversations": [GOOD["conversations"][1], *GOOD["conversations"]]},
]  # fmt: skip
JUNK = ['"', "\\", "{", "}", "[", "]", ":", ",", "\\ud800", "\\u0000", "\x00", "\x7f", "NaN", "1e999", "9" * 50, "[" * 1200,
        "<image>", "..", "\u202e", "\U0001f600", '"id":1,', "  ", "-", "null"]  # fmt: skip


@contextmanager
def within(seconds):
    """Fails what takes longer of a core."""

    def late(*args):
        raise AssertionError(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def junk_record(rng):
    """Returns a line: a record with a change in its value or its text."""
    text = json.dumps(mutate(rng, rng.choice(BASE)), ensure_ascii=rng.random() < 0.5)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
        at, n = rng.randrange(len(text) + 1), rng.choice([0, 0, 1, 3])
        text = text[:at] + rng.choice(JUNK) + text[at + n :]
    return text.encode("utf-8", "replace").decode().replace("\n", " ").replace("\r", " ") or "x"


def fuzz_records(folder, count, seed):
    """Returns (accepted, refused) of `count` records."""
    rng = random.Random(seed)
    (folder / "images").mkdir(exist_ok=True)
    lines = [junk_record(rng) for _ in range(count)]
    accepted = 0
    for line in lines:
        with within(1):
            raw = parse_record(line.encode(), 0, 1)
            measure_record(raw, "vicuna_v1")
            reader = RecordParser(template=rng.choice(["plain", "vicuna_v1"]))
            record = reader.read(raw)
            assert (record is None) == bool(reader.problems)
            assert all(text for _, p in reader.problems for text in (p.code, p.got, p.expected, p.hint))
    (folder / "r.jsonl").write_text("\n".join(lines), encoding="utf-8")
    raws = records_in(folder / "r.jsonl")
    assert [raw.index for raw in raws] == list(range(len(raws)))
    records = open_records(
        "s", records=folder / "r.jsonl", images=folder / "images", template="vicuna_v1", image_fit="pad",
        bad_records=Policy("skip", 0.9999),
    )  # fmt: skip
    bad = {each.record for each in records.known_bad}
    assert all(each.line and each.code.startswith("records/") and each.hint for each in records.known_bad)
    for sample in records:
        accepted += bool(sample.turns)
    assert accepted + len(bad) == len(raws)
    return accepted, len(bad)


def test_a_thousand_junk_records(tmp_path):
    accepted, refused = fuzz_records(tmp_path, 1000, 0)
    assert accepted > 20 and refused > 500


@pytest.mark.slow
def test_ten_thousand_junk_records(tmp_path):
    accepted, refused = fuzz_records(tmp_path, 10_000, 1)
    assert accepted > 200 and refused > 5000


def images(folder):
    """Whole files of every format and mode."""
    made = [(kind, noisy_image(60, 40)) for kind in FORMATS]
    made += [
        ("PNG", flat("RGBA", (1, 2, 3, 4))),
        ("PNG", flat("I;16", 9999)),
        ("PNG", paletted(transparency=1)),
        ("JPEG", flat("CMYK", (1, 2, 3, 4))),
    ]
    for i, (kind, image) in enumerate(made):
        image.save(folder / f"{i}", kind)
    frames = [flat("RGB", (9, 9, 9)), flat("RGB", (200, 9, 9))]
    frames[0].save(folder / "gif", "GIF", save_all=True, append_images=frames[1:])
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def fuzz_images(folder, count, seed):
    """(accepted, refused) of so many files: bytes flipped, cut, spliced into others."""
    rng = random.Random(seed)
    (folder / "whole").mkdir()
    whole, path, accepted = images(folder / "whole"), folder / "a", 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(count):
        data = bytearray(rng.choice(whole))
        match i % 3:
            case 0:
                for _ in range(rng.randrange(1, 8)):
                    data[rng.randrange(min(len(data), rng.choice([64, 10_000])))] = rng.randrange(256)
            case 1:
                del data[rng.randrange(len(data)) :]
            case _:
                other = rng.choice(whole)
                data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]
        path.write_bytes(data)
        for look in (lambda: check_header(path, "pad"), lambda: read_image(path, SPEC, "pad")):
            with within(2):
                try:
                    look()
                    accepted += 1
                except UserError as error:
                    (problem,) = error.problems
                    assert problem.code.startswith("image/") and str(path) in problem.where and problem.hint
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024
    return accepted, 2 * count - accepted


@pytest.mark.filterwarnings("ignore")
def test_sixty_junk_images(tmp_path):
    assert min(fuzz_images(tmp_path, 60, 0)) > 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_six_hundred_junk_images(tmp_path):
    assert min(fuzz_images(tmp_path, 600, 1)) > 100
