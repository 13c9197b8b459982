"""Junk records of kind `messages`, of a fixed seed: each is quickly accepted, or reported with its place."""

import base64
import json
import random

import pytest

from lmmkit.data.image_files.image_file import read_bytes
from lmmkit.data.sources.bad_records import Policy
from lmmkit.data.sources.records import open_records
from lmmkit.errors import UserError
from tests.data.sources.test_index_cache import records_in
from tests.data.sources.test_messages_records import PAIRS
from tests.data.sources.test_records import mutate
from tests.data.sources.test_records_fuzz import JUNK, within

IMAGE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR42mOMYmBiYAAAAdQAXslw++IAAAAASUVORK5CYII="
IMAGE_BYTES = base64.b64decode(IMAGE.partition(",")[2])
BASE = [ours for ours, _ in PAIRS]
BASE += [json.loads(json.dumps(ours).replace('"a.png"', json.dumps(IMAGE))) for ours in BASE]
VALUES = [None, True, 0, -1, 2**70, 0.5, "", " ", "<image>", "<video>", "a.png", "../a", "http://x/y.png", [], {}, [[]], [None],
          {"url": "a.png"}, {"type": "image"}, {"type": "image", "index": 5}, {"type": "text", "text": "x"}, {"bytes": "eA=="},
          IMAGE, IMAGE[:-1], IMAGE[:40] + "=" * 4, {"url": IMAGE}, {"type": "image_url", "image_url": {"url": IMAGE}}]  # fmt: skip
NAMES = ["role", "from", "content", "value", "type", "text", "image", "images", "image_url", "index", "messages",
         "conversations", "system", "id", "weight", "tools", "key", "\ud800", ""]  # fmt: skip
WORDS = [
    "user",
    "assistant",
    "system",
    "tool",
    "human",
    "gpt",
    "image",
    "image_url",
    "text",
    "video",
    "input_audio",
]


def parts_of(value):
    """Returns every object and list in a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value, *(each for part in inner for each in parts_of(part))] if inner or value in ([], {}) else []


def changed(rng, record):
    """Returns a record with changed, added, repeated and removed parts."""
    record = json.loads(json.dumps(mutate(rng, record) if rng.random() < 0.3 else record))
    for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
        places = parts_of(record)
        if not places:
            return record
        at = rng.choice(places)
        value = json.loads(json.dumps(rng.choice([*VALUES, *WORDS])))
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        match rng.randrange(4):
            case 0 if keys:
                at[rng.choice(keys)] = value
            case 1 if keys:
                del at[rng.choice(keys)]
            case 2 if isinstance(at, dict):
                at[rng.choice(NAMES)] = value
            case _ if isinstance(at, list):
                at.insert(rng.randrange(len(at) + 1), json.loads(json.dumps(rng.choice([value, *at]))))
    return record


def bytes_of(image):
    """Returns the bytes of an image; none if they are refused."""
    try:
        return read_bytes(image)[0]
    except UserError as error:
        assert all(p.code.startswith("image/") and image.address in p.where for p in error.problems)
        return b""


def fuzz_messages(folder, count, seed):
    """Returns (accepted, refused, images in them) of `count` records: lines of JSONL files, and lists in JSON files."""
    rng = random.Random(seed)
    (folder / "images").mkdir(exist_ok=True)
    accepted = refused = found = 0
    for n in range(count // 100):
        lines = n % 4 != 3  # broken text ends a list, so lists have changed values only
        texts = [json.dumps(changed(rng, rng.choice(BASE)), ensure_ascii=lines) for _ in range(100)]
        for i in range(100) if lines else ():
            for _ in range(rng.choice([0, 0, 0, 1, 3])):
                at, size = rng.randrange(len(texts[i]) + 1), rng.choice([0, 0, 1, 3])
                texts[i] = texts[i][:at] + rng.choice(JUNK) + texts[i][at + size :]
        path = folder / (f"{n}.jsonl" if lines else f"{n}.json")
        text = "\n".join(texts) if lines else f"[{','.join(texts)}]"
        path.write_bytes(text.encode("utf-8", "replace"))
        columns = rng.choice(
            [{}, {}, {"messages": "messages", "images": "images"}, {"id": "key", "system": "rules"}]
        )
        template = rng.choice(["vicuna_v1", "plain"])
        with within(5):
            records = open_records(
                "s", records=path, images=folder / "images", template=template, image_fit="pad", columns=columns,
                bad_records=Policy("skip", 0.9999),
            )  # fmt: skip
            bad = {each.record for each in records.known_bad}
            assert all(
                b.line and b.code.startswith("records/") and b.got and b.hint for b in records.known_bad
            )
            good = {records.place(i)[2] for i in range(len(records))}
            assert not good & bad and good | bad == set(range(len(records_in(path))))
            assert all(sample.turns for sample in records)
            inside = [image for sample in records for image in sample.images if image.address is not None]
            found += sum(bytes_of(image) == IMAGE_BYTES for image in inside)
        accepted, refused = accepted + len(good), refused + len(bad)
    return accepted, refused, found


def test_four_hundred_junk_records(tmp_path):
    *counts, images = fuzz_messages(tmp_path, 400, 0)
    assert min(counts) > 60 and images > 20


@pytest.mark.slow
def test_five_thousand_junk_records(tmp_path):
    *counts, images = fuzz_messages(tmp_path, 5000, 1)
    assert min(counts) > 800 and images > 300
