"""A model small enough to test everything on, and batches for it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lmmkit.api.batch import Batch, RowGather
from lmmkit.api.layout import Layout, Span, text
from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import Image, Sample, View
from lmmkit.attention.backends import Backend, Sdpa
from lmmkit.attention.forest import roots
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.data.packing import LaidOut, Packer
from lmmkit.model.decoder import Decoder, DecoderShape
from lmmkit.model.vision import VisionShape, ViT
from lmmkit.model.vlm import LMM, Connector
from tests.support.hf_weights import scramble

SPEC = ImageSpec(size=12, grid=(3, 3), width=16)
VISION = VisionShape(width=16, depth=3, heads=2, mlp=24, patch=4, image=SPEC)
TEXT = DecoderShape(vocab=101, width=24, depth=2, heads=4, kv_heads=2, head_size=8, mlp=40, context=256)


def tiny_lmm(
    *, dtype: torch.dtype = torch.float32, backend: Backend | None = None, text: DecoderShape = TEXT
) -> LMM:
    """Random weights by a fixed seed, in eval mode."""
    backend = backend or Sdpa()
    lmm = LMM(ViT(VISION, backend), Connector("mlp2x_gelu", SPEC.width, text.width), Decoder(text), backend)
    scramble(lmm, 0)
    return lmm.to(dtype).eval()


def read(image: Image, shape: str) -> Tensor:
    """A stub reader: noise by the path, the image's edit on it, in float32."""
    noise = torch.Generator().manual_seed(zlib.crc32(f"{image.path} {shape}".encode()))
    pixels_CXY = torch.randn(3, SPEC.size, SPEC.size, generator=noise)
    return pixels_CXY if image.edit is None else image.edit(pixels_CXY)


def read64(image: Image, shape: str) -> Tensor:
    return read(image, shape).double()


def image(path: str) -> Span:
    return Span(kind="image", n=SPEC.tokens, image=Image(path))


def laid_out(*layout: Span, name: str = "main", supervised: bool = True, key: str = "s") -> LaidOut:
    return LaidOut(View(sample=Sample(key=key, turns=()), name=name, supervised=supervised), tuple(layout))


def prompt(ids: Sequence[int], picture: str | None = None, at: int = 1) -> Layout:
    """Text, and perhaps a picture `at` rows in."""
    if picture is None:
        return (text(ids, "user"),)
    return tuple(s for s in (text(ids[:at], "user"), image(picture), text(ids[at:], "user")) if s.n)


def packed(groups: Sequence[Sequence[Layout]], *, share: bool = True, reader=read) -> tuple[Batch, list]:
    """Layouts, those of a group in one tree, as a micro-batch without targets; and their rows."""
    packer = Packer(reader=reader, image_rows=SPEC.tokens, image_size=SPEC.size, share=share)
    return packer.pack(
        [packer.tree([laid_out(*layout, supervised=False) for layout in group]) for group in groups]
    )


def text_batch(prompts: Sequence[Sequence[int]]) -> Batch:
    """Packed text, made by hand."""
    none, total = torch.empty(0, dtype=torch.int64), sum(map(len, prompts))
    spec = AttentionSpec(roots([len(p) for p in prompts]), torch.zeros(total, dtype=torch.bool), none)
    return Batch(
        attention=spec, last=spec, id_T=torch.tensor([i for p in prompts for i in p]), scatters=(),
        pixels_ICXY=torch.empty(0, 3, SPEC.size, SPEC.size), predict=RowGather(none, none), target_S=none, term_S=none,
        text_terms=("next_token",),
    )  # fmt: skip


def whole(batch: Batch) -> Batch:
    """A batch of whose last layer all rows come out."""
    return replace(batch, last=batch.attention)


def random_ids(n: int, seed: int, vocab: int = TEXT.vocab) -> list[int]:
    return torch.randint(3, vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
