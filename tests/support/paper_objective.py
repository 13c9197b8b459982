"""The paper's three plugins on a tiny objective, made by hand; samples; and a tokenizer of letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lmmkit_directed_token import DirectedToken
from lmmkit_guided_loss import GuidedLoss
from lmmkit_shuffle import ImageOrder, TextOrder
from torch import Tensor, nn

from lmmkit.api.batch import Batch
from lmmkit.api.components import Term
from lmmkit.api.model_info import Dims, ImageSpec
from lmmkit.api.sample import Image, Sample, Turn
from lmmkit.attention.backends import Backend
from lmmkit.data.fits.rows import FixedRows
from lmmkit.data.micro_batch.laid_out import SizedSample
from lmmkit.data.packing import Packer
from lmmkit.data.views import Views
from lmmkit.objective import Objective, total
from tests.support.hf_weights import scramble
from tests.support.tiny_model import SPEC, TEXT, pack, tiny_lmm

DRT = DirectedToken(name="directed_token")
IMAGE_ORDER = ImageOrder(name="image_order", grid=3, permutations=5)
TEXT_ORDER = TextOrder(name="text_order", instruction="Order:")
GUIDED = GuidedLoss(name="guided_loss")
TERMS = (GUIDED, IMAGE_ORDER, TEXT_ORDER)
DIMS = Dims(width=TEXT.width, vocab=TEXT.vocab, layers=TEXT.depth, heads=TEXT.heads, image=SPEC)
NO_TEACHERS: Mapping[str, ImageSpec] = {}
WEIGHTS = {"next_token": 1.0, "guided_loss": 0.5, "image_order": 0.3, "text_order": 0.7}


@dataclass(frozen=True)
class Letters:
    """A tokenizer: one id a character."""

    bos: int = 1
    eos: int = 2
    size: int = TEXT.vocab

    def encode(self, text: str) -> list[int]:
        return [3 + ord(c) % (TEXT.vocab - 3) for c in text]

    encode_continued = encode_unprefixed = encode

    def offsets(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        return [(i, i + 1) for i in range(len(ids))]

    def control(self, spelling: str) -> int | None:
        return {"</s>": self.eos}.get(spelling)


def caption(key: str, words: str, question: str = "", path: str | None = None) -> Sample:
    """Stage 1's layout: image, perhaps a question, caption."""
    turns = (Turn("user", question, 1), Turn("assistant", words))
    return Sample(key=key, turns=turns, images=(Image(path or f"/{key}.png"),), template="plain")


def chat(key: str, *texts: str, images: int = 1) -> Sample:
    """Stage 2's layout: a system prompt, then turns; the image is in the first."""
    turns = [
        Turn(("user", "assistant")[i % 2], text, images if i == 0 else 0) for i, text in enumerate(texts)
    ]
    return Sample(key=key, turns=tuple(turns), images=tuple(Image(f"/{key}{i}.png") for i in range(images)))


CAPTIONS = (caption("a", "a red cat on a mat"), caption("b", "two dogs"), caption("c", "sky"))
CHATS = (
    chat("d", "what?", "a cat sat"),
    chat("e", "who?", "me and you", "why?", "so"),
    chat("f", "hi", "yes no", images=0),
)


def views(**settings) -> Views:
    """Returns the three views of a sample; those of image_order have the directed token."""
    settings = {"context": 256, "too_long": "truncate"} | settings
    return Views(
        tokenizer=Letters(), rows_of=FixedRows(SPEC.tokens), after_eos="published", seed=0, tasks=(IMAGE_ORDER, TEXT_ORDER),
        edits=((DRT, frozenset({"image_order"})),), **settings,
    )  # fmt: skip


def packer(
    *, share: bool = True, terms: tuple[Term, ...] = TERMS, teachers: Mapping[str, ImageSpec] = NO_TEACHERS
) -> Packer:
    needs = tuple(need for term in terms for need in term.needs)
    return Packer(
        image=SPEC, text_terms=("next_token", "text_order"), needs=needs, terms=terms, share=share,
        teachers=teachers,
    )  # fmt: skip


def sized(samples: Sequence[Sample], packer: Packer, **settings) -> list[SizedSample]:
    made = views(**settings)
    return [packer.sized(made.fitting(sample, 0, Counter())) for sample in samples]


def packed(
    samples: Sequence[Sample], *, share: bool = True, terms: tuple[Term, ...] = TERMS
) -> tuple[Batch, list[np.ndarray]]:
    made = packer(share=share, terms=terms)
    return pack(made, sized(samples, made))


def objective(*, dtype: torch.dtype = torch.float64, backend: Backend | None = None) -> Objective:
    modules = {c.name: c.modules(DIMS) for c in (DRT, *TERMS)}
    plugins = nn.ModuleDict({name: m for name, m in modules.items() if m is not None})
    scramble(plugins, 1)
    made = Objective(
        tiny_lmm(dtype=dtype, backend=backend, text=TEXT), plugins.to(dtype), compute=torch.float32, dims=DIMS
    )
    made.terms = TERMS
    return made


def learned(made: Objective, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Term sums over micro-batches, and the gradient of every parameter of their weighted total."""
    made.zero_grad()
    counts = {name: max(sum(b.count[name] for b in batches), 1) for name in WEIGHTS}
    sums: dict[str, Tensor] = {}
    for batch in batches:
        found = made(batch).sums
        total(found, WEIGHTS, counts).backward()
        sums = {name: sums.get(name, 0) + value.detach() for name, value in found.items()}
    return sums, {name: p.grad for name, p in made.named_parameters()}
