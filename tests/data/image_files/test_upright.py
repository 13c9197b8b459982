"""The rotation of PNG files, which may be in several chunks, before and behind the pixels, without their decoding."""

import random
import struct
import zlib

import pytest
from PIL import Image as Pil
from PIL.PngImagePlugin import PngImageFile

from lmmkit.data.image_files import upright as module
from lmmkit.data.image_files.image_file import check_header, check_whole
from lmmkit.data.image_files.upright import UPRIGHT, turn
from tests.data.test_images import noisy_image


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def turned_chunks(orientation):
    """Returns chunks that turn an image, in each way that Pillow reads."""
    exif = Pil.Exif()
    exif[0x0112] = orientation
    data = exif.tobytes()
    profile = b"Raw profile type exif\0"
    text = b"\nexif\n%8d\n" % len(data) + data.hex().encode() + b"\n"
    xmp = b'<x tiff:Orientation="%d"/>' % orientation
    return [
        chunk(b"eXIf", data.removeprefix(b"Exif\0\0")), chunk(b"tEXt", profile + text),
        chunk(b"zTXt", profile + b"\0" + zlib.compress(text)), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    ]  # fmt: skip


def png(path, before=b"", behind=b"", size=(30, 20)):
    """Writes a PNG with chunks before and behind its pixels, which are in several chunks."""
    noisy_image(*size).save(path)
    data = path.read_bytes()
    first = data.index(b"IDAT") - 4
    (length,) = struct.unpack(">I", data[first : first + 4])
    pixels, end = data[first + 8 : first + 8 + length], data[first + 12 + length :]
    parts = b"".join(chunk(b"IDAT", pixels[i : i + 500]) for i in range(0, length, 500))
    path.write_bytes(data[:first] + before + parts + behind + end)
    return path


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_rotation_is_found_before_and_behind_the_pixels(tmp_path, orientation):
    want = (30, 20) if orientation == 6 else (20, 30)
    for i, each in enumerate(turned_chunks(orientation)):
        for place in ("before", "behind"):
            path = png(tmp_path / f"{i}{place}.png", **{place: each})
            assert check_header(path, "crop") == check_whole(path, "crop") == want, (i, place)
            with Pil.open(path) as image:
                assert turn(image) == UPRIGHT.get(orientation)


def test_pixels_are_decoded_only_if_something_follows_them(tmp_path, monkeypatch):
    loads, load = [], PngImageFile.load
    monkeypatch.setattr(PngImageFile, "load", lambda self: loads.append(1) or load(self))
    assert check_header(png(tmp_path / "a.png"), "crop") == (20, 30) and not loads
    assert check_header(png(tmp_path / "b.png", before=turned_chunks(6)[3]), "crop") == (30, 20) and not loads
    assert check_header(png(tmp_path / "c.png", behind=turned_chunks(6)[0]), "crop") == (30, 20) and loads
    loads.clear()
    with Pil.open(tmp_path / "a.png") as image:
        turn(image)
        assert image.convert("RGB").tobytes() == noisy_image(30, 20).tobytes(), (
            "the place in the file is as before"
        )
    monkeypatch.setattr(module, "_MAX_CHUNKS", 3)
    loads.clear()
    assert check_header(tmp_path / "a.png", "crop") == (20, 30) and loads


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_have_the_rotation_that_their_decoding_finds(tmp_path):
    """Changes bytes of PNG files, and compares with the plain way: Pillow's own, which decodes."""
    rng, path, same = random.Random(0), tmp_path / "a.png", 0
    wholes = [
        png(path, **more).read_bytes() for more in ({}, *({"behind": each} for each in turned_chunks(6)))
    ]
    for _ in range(300):
        data = bytearray(rng.choice(wholes))
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(rng.choice([33, len(data) - 60]), len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice([len(data), len(data), rng.randrange(50, len(data))])])
        found = []
        for plain in (False, True):
            try:
                with Pil.open(path) as image:
                    if plain:
                        image.load()
                    found.append(turn(image))
            except Exception:
                found.append("broken")
        same += found[0] == found[1]
        assert found[0] == found[1] or found[1] == "broken", found
    assert same > 50
