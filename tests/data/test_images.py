"""Images: CLIP's geometry against transformers, modes, and files that must be refused."""

import os
import pickle
import random
import struct
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Pil

from lmmkit.api.model_info import CLIP_MEAN, ImageSpec
from lmmkit.api.sample import AnyRes, Image, Native
from lmmkit.data.image_files.image_file import FORMATS, MAX_BYTES, MAX_PIXELS, check_header
from lmmkit.data.images import (
    Blank,
    Cut,
    ImageReader,
    normalise,
    pixels_shape,
    read_each,
    read_image,
    renormalise,
)
from lmmkit.errors import UserError
from tests.support.plain_twins import show

SPEC = ImageSpec(size=48, grid=(4, 4), width=8)
GREY_LEVEL = 1 / 255 / 0.26
SIZES = [(48, 48), (100, 60), (60, 101), (33, 20), (7, 48), (301, 47), (48, 96), (5, 300)]
BAR = [int(255 * mean) for mean in CLIP_MEAN]


def noisy_image(width: int, height: int, seed: int = 0) -> Pil.Image:
    """Returns noise over a gradient: sharp and smooth at once."""
    noise = np.random.default_rng(seed).integers(0, 80, (height, width, 3))
    ramp = np.linspace(0, 175, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    return Pil.fromarray((noise + ramp).astype(np.uint8))


def error_of(path, fit="crop") -> str:
    with pytest.raises(UserError) as error:
        read_image(path, SPEC, fit)
    (problem,) = error.value.problems
    assert os.fspath(path) in problem.where
    return problem.code


@pytest.fixture(scope="module")
def clip():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = SPEC.size
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


@pytest.mark.parametrize("size", SIZES)
def test_crop_and_pad_are_clips(tmp_path, clip, size):
    path = tmp_path / "a.png"
    noisy_image(*size).save(path)
    side = max(size)
    square = Pil.new("RGB", (side, side), tuple(BAR))
    square.paste(noisy_image(*size), ((side - size[0]) // 2, (side - size[1]) // 2))
    for fit, given in ("crop", noisy_image(*size)), ("pad", square):
        want = torch.from_numpy(np.asarray(clip(given)["pixel_values"][0]))
        read = read_image(path, SPEC, fit)
        assert (read.dtype, tuple(read.shape)) == (torch.uint8, (3, 48, 48))
        assert read.is_contiguous()
        got = normalise(read, SPEC)
        assert got.dtype == torch.float32
        assert (got - want).abs().max() < 1.01 * GREY_LEVEL
        assert (got - want).abs().mean() < 1e-3


@pytest.mark.parametrize(("resample", "code"), [("bicubic", 3), ("bilinear", 2)])
@pytest.mark.parametrize("size", SIZES)
def test_squash_is_siglips(tmp_path, size, resample, code):
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    noisy_image(*size).save(tmp_path / "a.png")
    spec = ImageSpec(size=48, grid=(4, 4), width=8, mean=(0.5,) * 3, std=(0.5,) * 3, resample=resample)
    theirs = SiglipImageProcessorPil(size={"height": 48, "width": 48}, resample=code)
    want = torch.from_numpy(np.asarray(theirs(noisy_image(*size))["pixel_values"][0]))
    got = normalise(read_image(tmp_path / "a.png", spec, "stretch"), spec)
    assert got.shape == want.shape == (3, 48, 48)
    assert (got - want).abs().max() < 1.01 / 255 / 0.5  # a grey level
    show("grey_levels", float((got - want).abs().max()) * 255 * 0.5)


def test_pad_has_bars_in_the_mean_colour(tmp_path):
    Pil.new("RGB", (96, 48), "red").save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", SPEC, "pad")
    assert read[:, 0, 0].tolist() == BAR == [122, 116, 104]
    assert read[:, 24, 24].tolist() == [255, 0, 0]


def flat(mode, value, **info) -> Pil.Image:
    image = Pil.new(mode, (48, 48), value)
    image.info.update(info)
    return image


def paletted(transparency=None) -> Pil.Image:
    image = Pil.new("P", (48, 48), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


MODES = [
    ("PNG", flat("RGB", (10, 20, 30)), (10, 20, 30)),
    ("PNG", flat("L", 77), (77, 77, 77)),
    ("PNG", flat("1", 1), (255, 255, 255)),
    ("PNG", flat("LA", (100, 0)), (255, 255, 255)),
    ("PNG", flat("LA", (100, 255)), (100, 100, 100)),
    ("PNG", flat("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
    ("PNG", flat("RGBA", (0, 100, 200, 51)), (204, 224, 244)),
    ("PNG", flat("I;16", 257 * 100), (100, 100, 100)),
    ("PNG", flat("I;16", 65535), (255, 255, 255)),
    ("PNG", paletted(), (10, 200, 30)),
    ("PNG", paletted(transparency=1), (255, 255, 255)),
    ("PNG", paletted(transparency=0), (10, 200, 30)),
    ("PNG", flat("RGB", (9, 9, 9), transparency=(9, 9, 9)), (255, 255, 255)),
    ("PNG", flat("L", 9, transparency=9), (255, 255, 255)),
    ("GIF", paletted(), (10, 200, 30)),
    ("BMP", flat("RGB", (10, 20, 30)), (10, 20, 30)),
    ("WEBP", flat("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
    ("JPEG", flat("CMYK", (0, 255, 255, 0)), (254, 0, 0)),
    ("JPEG", flat("L", 50), (50, 50, 50)),
]


@pytest.mark.parametrize(("kind", "image", "want"), MODES)
def test_modes(tmp_path, kind, image, want):
    path = tmp_path / "image.any"
    options = {key: image.info[key] for key in ("transparency",) if key in image.info}
    image.save(path, kind, **options)
    got = read_image(path, SPEC, "crop")
    assert got[:, 5, 5].tolist() == pytest.approx(want, abs=1 if kind in ("JPEG", "WEBP") else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_held_sideways(tmp_path, orientation):
    upright = noisy_image(64, 48)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that the tag undoes
    held = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Pil.Exif()
    exif[0x0112] = orientation
    held.save(tmp_path / "held.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    paths = (tmp_path / "held.png", tmp_path / "upright.png")
    held_CXY, upright_CXY = (read_image(path, SPEC, "crop") for path in paths)
    assert torch.equal(held_CXY, upright_CXY)
    held.save(tmp_path / "held.jpg", exif=exif)
    assert check_header(paths[0], "crop") == check_header(tmp_path / "held.jpg", "crop") == (48, 64)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_costs_nothing(tmp_path):
    noisy_image(64, 48).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    noisy_image(64, 48).save(tmp_path / "b.jpg")
    paths = (tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert torch.equal(*(read_image(path, SPEC, "crop") for path in paths))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(tmp_path, kind):
    frames = [Pil.new("RGB", (48, 48), colour) for colour in ("red", "blue")]
    path = tmp_path / "a"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(path, SPEC, "crop")[:, 5, 5].tolist() == [255, 0, 0]


def test_files_that_are_refused(tmp_path):
    path = tmp_path / "a.jpg"
    assert error_of(path) == "image/file"
    assert error_of(tmp_path) == "image/file"
    os.mkfifo(tmp_path / "fifo.jpg")
    assert error_of(tmp_path / "fifo.jpg") == "image/file"
    for data in (b"", b"<html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a"):
        path.write_bytes(data)
        assert error_of(path) in ("image/format", "image/damaged")
    for kind in ("TIFF", "PPM", "ICO"):
        noisy_image(48, 48).save(path, kind)
        assert error_of(path) == "image/format"
    with pytest.raises(UserError, match="/nowhere"):
        read_image("/nowhere", SPEC, "pad")


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated(tmp_path, kind):
    path = tmp_path / "whole"
    noisy_image(200, 100).save(path, kind)
    data = path.read_bytes()
    for share in (0.1, 0.5, 0.95):
        path.write_bytes(data[: int(len(data) * share)])
        assert error_of(path) in ("image/damaged", "image/format")


def big_png(width: int, height: int) -> bytes:
    """Returns a png whose header claims the size and whose data are a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_and_slivers(tmp_path):
    path = tmp_path / "big.png"
    cases = [
        (50_000, 50_000, "too-large"), (11_000, 11_000, "too-large"), (8_000, 5_001, "too-large"),
        (20_000, 2_000, "too-large"), (60_000, 1, "aspect-ratio"), (1, 300, "aspect-ratio"),
    ]  # fmt: skip
    begin = time.perf_counter()
    for width, height, code in cases:
        path.write_bytes(big_png(width, height))
        assert error_of(path, "pad") == f"image/{code}"
        with pytest.raises(UserError):
            check_header(path, "pad")
    assert time.perf_counter() - begin < 1
    path.write_bytes(big_png(8_000, MAX_PIXELS // 8_000))
    check_header(path, "pad")  # the header is good: only decoding finds out
    assert error_of(path) == "image/damaged"
    path.write_bytes(big_png(20_000, 2_000))
    check_header(path, "crop")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_mutated_files(tmp_path, kind):
    path = tmp_path / "a"
    noisy_image(40, 30).save(path, kind)
    data = path.read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        changed = bytearray(data)
        for _ in range(rng.randrange(1, 5)):
            changed[rng.randrange(min(len(data), 300))] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            assert read_image(path, SPEC, "crop").shape == (3, 48, 48)
        except UserError as error:
            assert len(error.problems) == 1


def test_blank():
    spec = ImageSpec(size=4, grid=(1, 1), width=8)
    pixels_CXY = normalise(torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8), spec)
    assert torch.equal(Blank()(pixels_CXY), torch.zeros(3, 4, 4))
    black = normalise(torch.zeros(3, 4, 4, dtype=torch.uint8), spec)
    assert torch.allclose(Blank("black")(pixels_CXY), black)
    assert len({Blank(), Blank("mean"), Blank("black")}) == 2


def test_reader_caches_within_its_bounds(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, path in enumerate(paths):
        noisy_image(60, 50, seed=i).save(path)
    spec = ImageSpec(size=418, grid=(1, 1), width=8)  # half a megabyte an image
    reader = ImageReader(spec, cache_mb=1)
    first = reader(Image(paths[0]), "crop")
    assert torch.equal(first, read_image(paths[0], spec, "crop"))
    os.remove(paths[0])
    reader(Image(paths[1]), "crop")
    assert torch.equal(reader(Image(paths[0]), "crop"), first)
    normalise(first, spec)  # leaves the image of the cache unchanged
    assert torch.equal(reader(Image(paths[0], Blank()), "crop"), first) and first.any()
    with pytest.raises(UserError):
        reader(Image(paths[0]), "pad")
    reader(Image(paths[2]), "crop")
    reader(Image(paths[1]), "crop")
    with pytest.raises(UserError):
        reader(Image(paths[0]), "crop")
    assert len(pickle.dumps(reader)) < 500
    assert pickle.loads(pickle.dumps(reader)).spec == spec
    assert ImageReader(spec, cache_mb=0)(Image(paths[1]), "pad").shape == (3, 418, 418)


def test_an_image_in_a_larger_file(tmp_path):
    noisy_image(60, 50).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "many").write_bytes(b"before" + data + b"after")
    there = Image(str(tmp_path / "many"), part=(6, len(data)))
    assert torch.equal(read_image(there, SPEC, "pad"), read_image(tmp_path / "a.png", SPEC, "pad"))
    reader = ImageReader(SPEC, cache_mb=1)
    assert torch.equal(reader(there, "pad"), read_image(there, SPEC, "pad"))
    for part, code in (
        ((6, MAX_BYTES + 1), "too-large"),
        ((6, len(data) + 99), "damaged"),
        ((0, 20), "format"),
    ):
        with pytest.raises(UserError) as error:
            read_image(Image(there.path, part=part), SPEC, "pad")
        assert error.value.problems[0].code == f"image/{code}"
        assert f"bytes {part[0]} to" in error.value.problems[0].where


def test_a_file_of_too_many_bytes(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(MAX_BYTES + 1)  # a hole: it takes no room
    assert error_of(tmp_path / "a.png") == "image/too-large"


def test_renormalised_pixels_have_the_other_constants():
    raw = torch.randint(256, (3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    other = replace(SPEC, mean=(0.2, 0.5, 0.6), std=(0.3, 0.4, 0.5))
    assert (renormalise(normalise(raw, SPEC), SPEC, other) - normalise(raw, other)).abs().max() < 1e-6
    same = normalise(raw, SPEC)
    assert renormalise(same, SPEC, replace(SPEC, size=99)) is same


def test_a_reader_reads_an_image_in_each_size_from_one_decoding(tmp_path, monkeypatch):
    path = str(tmp_path / "a.png")
    Pil.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(path)
    small = replace(SPEC, size=16, mean=(0.1, 0.2, 0.9))
    reader, opened = ImageReader(SPEC, cache_mb=1, teachers=(Cut.of(small),)), []
    load = Pil.open
    monkeypatch.setattr(Pil, "open", lambda *args, **more: opened.append(args) or load(*args, **more))
    found = read_each(pickle.loads(pickle.dumps(reader)), Image(path), "pad")
    assert len(opened) == 1 and list(found) == [(Image(path), "pad"), (Image(path), "pad", Cut.of(small))]
    for pixels, spec in zip(found.values(), (SPEC, small), strict=True):
        assert torch.equal(pixels, read_image(path, spec, "pad"))
    assert torch.equal(reader(Image(path), "pad"), next(iter(found.values())))


@pytest.mark.parametrize(
    "fit", ["crop", "pad", "stretch", AnyRes(), AnyRes(max_tiles=2), Native(max_patches=6), Native(max_patches=9, multiple=2)]
)  # fmt: skip
def test_the_header_gives_the_shape_of_the_pixels(tmp_path, fit):
    spec = ImageSpec(size=24, grid=(3, 3), width=4)
    for size in ((50, 40), (9, 70), (24, 24)):
        path = str(tmp_path / f"{size[0]}.png")
        noisy_image(*size).save(path)
        assert pixels_shape(Image(path), fit, spec) == read_image(path, spec, fit).shape


def test_too_little_memory_is_no_fault_of_the_image(tmp_path, monkeypatch):
    noisy_image(8, 8).save(tmp_path / "a.png")
    for make, kind in ((bytearray, MemoryError), (lambda n: torch.empty(n, dtype=torch.uint8), RuntimeError)):
        monkeypatch.setattr(Pil, "open", lambda *given, make=make, **more: make(2**50))
        with pytest.raises(kind):
            read_image(tmp_path / "a.png", SPEC, "crop")
