"""A model small enough to test everything on, and batches for it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lmmkit.api.batch import Batch, RowGather
from lmmkit.api.layout import Layout, Span, text
from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import Image, ImageFit, Sample, View
from lmmkit.attention.backends import Backend, Sdpa
from lmmkit.attention.forest import roots
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.data.images import Cut, ImageReader, normalise
from lmmkit.data.micro_batch.laid_out import LaidOut, SizedSample
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.data.packing import Packer
from lmmkit.model.connectors.mlp import MlpConnector
from lmmkit.model.decoder import Decoder, DecoderShape
from lmmkit.model.vision import VisionShape, ViT
from lmmkit.model.vlm import LMM
from tests.support.hf_weights import scramble

SPEC = ImageSpec(size=12, grid=(3, 3), width=16)
VISION = VisionShape(width=16, depth=3, heads=2, mlp=24, patch=4, image=SPEC)
TEXT = DecoderShape(vocab=101, width=24, depth=2, heads=4, kv_heads=2, head_size=8, mlp=40, context=256)


def tiny_lmm(
    *, dtype: torch.dtype = torch.float32, backend: Backend | None = None, text: DecoderShape = TEXT
) -> LMM:
    """Random weights by a fixed seed, in eval mode."""
    backend = backend or Sdpa()
    lmm = LMM(ViT(VISION, backend), MlpConnector(SPEC.width, text.width, SPEC.grid), Decoder(text), backend)
    scramble(lmm, 0)
    return lmm.to(dtype).eval()


def read(image: Image, fit: str, size: int = SPEC.size) -> Tensor:
    """Returns the decoded image of a path that need not exist: noise, a function of path, fit and size."""
    noise = torch.Generator().manual_seed(zlib.crc32(f"{image.path} {fit}".encode()))
    return torch.randint(256, (3, size, size), generator=noise, dtype=torch.uint8)


class DrawnImages(ImageReader):
    """Reads images that need not exist, as `read` does, in the sizes of all teachers."""

    def _all(self, image: Image, fit: ImageFit) -> list[Tensor]:
        return [read(image, fit, cut.size) for cut in (self.spec, *self.teachers)]


def pixels(image: Image, fit: str = "pad") -> Tensor:
    """Returns the normalised and edited image that the encoder gets for what `read` returns."""
    pixels_CXY = normalise(read(image, fit), SPEC)
    return pixels_CXY if image.edit is None else image.edit(pixels_CXY)


def pack(packer: Packer, samples: Sequence[SizedSample]) -> tuple[Batch, list[np.ndarray]]:
    """Packs samples, with the images that `read` returns."""
    cuts = {cut for spec in packer.teachers.values() if (cut := Cut.of(spec)) != Cut.of(packer.image)}
    return packer.pack(samples, read_images(samples, DrawnImages(packer.image, 0, tuple(cuts))))


def image(path: str, n: int = SPEC.tokens) -> Span:
    return Span(kind="image", n=n, image=Image(path))


def laid_out(*layout: Span, name: str = "main", key: str = "s", **view) -> LaidOut:
    made = {"supervision": "train", **view}
    return LaidOut(View(sample=Sample(key=key, turns=()), name=name, **made), tuple(layout))


def prompt(ids: Sequence[int], name: str | None = None, at: int = 1) -> Layout:
    """Returns text, with the image `name` after `at` rows if it is given."""
    if name is None:
        return (text(ids, "user"),)
    return tuple(s for s in (text(ids[:at], "user"), image(name), text(ids[at:], "user")) if s.n)


def packed(groups: Sequence[Sequence[Layout]], *, share: bool = True) -> tuple[Batch, list]:
    """Layouts, those of a group in one tree, as a micro-batch without targets; and their rows."""
    packer = Packer(image=SPEC, share=share)
    samples = [packer.sized([laid_out(*layout, supervision="none") for layout in group]) for group in groups]
    return pack(packer, samples)


def text_batch(prompts: Sequence[Sequence[int]]) -> Batch:
    """Packed text, made by hand."""
    none, total = torch.empty(0, dtype=torch.int64), sum(map(len, prompts))
    spec = AttentionSpec(roots([len(p) for p in prompts]), torch.zeros(total, dtype=torch.bool), none)
    return Batch(
        attention=spec, last=spec, id_T=torch.tensor([i for p in prompts for i in p], dtype=torch.int64), scatters=(),
        pixels_ICXY=torch.empty(0, 3, SPEC.size, SPEC.size), predict=RowGather.of(none, none), target_S=none, term_S=none,
        text_terms=("next_token",),
    )  # fmt: skip


def whole(batch: Batch) -> Batch:
    """Returns a batch that reads all rows of the last layer."""
    return replace(batch, last=batch.attention)


def random_ids(n: int, seed: int, vocab: int = TEXT.vocab) -> list[int]:
    return torch.randint(3, vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
