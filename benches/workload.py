"""Equal training steps for lmmkit and transformers: one model, one set of samples.

S and L are captions with 64 or 576 rows an image, T are conversations of about 900 rows a sample. A LLaVA with
random weights is made by transformers and read by `lmmkit.load`; the samples are laid out by
lmmkit's own pipeline, and the peer gets the very ids of these layouts, one padded batch a view.
"""

from __future__ import annotations

import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers as hf
from lmmkit_directed_token import DirectedToken
from lmmkit_guided_loss import GuidedLoss
from lmmkit_shuffle import ImageOrder, TextOrder
from torch import Tensor, nn

import lmmkit
from lmmkit.api.batch import Batch
from lmmkit.api.components import Term
from lmmkit.api.model_info import Dims, ImageSpec
from lmmkit.api.sample import Image, Sample, Turn
from lmmkit.data.fits.rows import FixedRows
from lmmkit.data.images import normalise
from lmmkit.data.micro_batch.laid_out import LaidOut, SizedSample
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.data.packing import Packer
from lmmkit.data.views import Views
from lmmkit.model.init import init
from lmmkit.objective import Objective
from lmmkit.training.step import run_step
from tests.support.hf_weights import scramble

VOCAB, IMAGE, DRT = (
    4096,
    5,
    6,
)  # ids 5 and 6 are the peer's: its image token, and a row for the directed token
CPU = torch.device("cpu")
LEARNING_RATE = 1e-4
ORDERED = ("direct", "finetune")  # methods with an image-order task
WEIGHTS = {"next_token": 1.0, "text_order": 1.0, "image_order": 1.0, "guided_loss": 0.1}


@dataclass(frozen=True)
class Config:
    """Sizes of a workload. `question` and `answer` are word counts, `answer` from and to."""

    samples: int
    side: int  # image rows a side
    question: int
    answer: tuple[int, int]
    vision: tuple[int, int, int] = (192, 4, 3)  # width, depth, heads; the MLP is 4 x width
    text: tuple[int, int, int, int] = (256, 6, 8, 688)  # width, depth, heads, MLP
    permutations: int = 1000


CONFIGS = {
    "S": Config(samples=16, side=8, question=16, answer=(48, 48)),
    "L": Config(samples=4, side=24, question=0, answer=(25, 40)),
    "T": Config(samples=4, side=24, question=170, answer=(130, 170)),
}


class Numbers:
    """Encodes words that are ids."""

    bos, eos, size = 1, 2, VOCAB

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    encode_continued = encode_unprefixed = encode


DIRECTED = DirectedToken(name="directed_token")
GUIDED = GuidedLoss(name="guided_loss")
TEXT_ORDER = TextOrder(name="text_order", instruction="9 10 11 12 13 14 15 16")


def image_order(config: Config) -> ImageOrder:
    """Returns the paper's image-order task with tiles of one patch and a given number of permutations."""
    return ImageOrder(name="image_order", grid=config.side, permutations=config.permutations)


def terms(config: Config, method: str) -> tuple[Term, ...]:
    """Returns the plugin terms of `llava`, `guided`, `finetune` (the second stage's) or `direct` (the first's)."""
    return {
        "llava": (), "guided": (GUIDED,), "finetune": (GUIDED, image_order(config)),
        "direct": (GUIDED, image_order(config), TEXT_ORDER),
    }[method]  # fmt: skip


def samples(config: Config, seed: int = 0) -> list[Sample]:
    """Returns random words in the plain layout: the image, perhaps a question, the answer."""
    draw = torch.Generator().manual_seed(seed)

    def words(n: int) -> str:
        return " ".join(map(str, torch.randint(20, VOCAB, (n,), generator=draw).tolist()))

    def length() -> int:
        return int(torch.randint(config.answer[0], config.answer[1] + 1, (1,), generator=draw))

    return [
        Sample(
            key=str(i), images=(Image(f"/{i}.png"),), template="plain",
            turns=(Turn("user", words(config.question), 1), Turn("assistant", words(length()))),
        )
        for i in range(config.samples)
    ]  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Holds a workload: the samples' views, a packer, and both models with the same weights.

    `compute`: the dtype of products; weights are float32.
    """

    config: Config
    method: str
    views: tuple[tuple[LaidOut, ...], ...]
    packer: Packer
    ours: Objective
    theirs: nn.Module
    order_head: nn.Linear  # the peer's
    device: torch.device
    compute: torch.dtype

    def batch(self) -> Batch:
        """Returns all samples as one packed micro-batch."""
        return self.pack([self.packer.sized(members) for members in self.views])[0]

    def pack(self, samples: Sequence[SizedSample]) -> tuple[Batch, list[np.ndarray]]:
        """Packs these samples into one micro-batch; returns it and the rows of their views."""
        return self.packer.pack(samples, read_images(samples, self.read))

    def read(self, image: Image, fit: str) -> Tensor:
        """Returns noise that depends on the image's path."""
        draw = torch.Generator().manual_seed(zlib.crc32(image.path.encode()))
        size = self.packer.image.size
        return torch.randint(256, (3, size, size), generator=draw, dtype=torch.uint8)

    def pixels(self, image: Image) -> Tensor:
        """Returns the pixels that an encoder gets for an image."""
        pixels_CXY = normalise(self.read(image, "pad"), self.packer.image)
        return pixels_CXY if image.edit is None else image.edit(pixels_CXY)


def work(
    name: str, method: str, *, frozen: bool = False, share: bool = True, device: torch.device = CPU,
    compute: torch.dtype = torch.float32,
) -> Work:  # fmt: skip
    """Returns the workload of a configuration and a method; `frozen` freezes the decoder (stage 1)."""
    config = CONFIGS[name]
    theirs = peer_model(config)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        lmm = lmmkit.load(Path(folder), device=device).objective.lmm
    chosen = terms(config, method)
    plugins = modules(config, method, lmm.decoder.shape.width).to(device)
    ours = Objective(lmm, plugins, compute=compute)
    ours.terms = chosen
    views = Views(
        tokenizer=Numbers(), rows_of=FixedRows(config.side**2), context=2048, too_long="error", after_eos="published",
        seed=0, tasks=tuple(t for t in chosen if isinstance(t, ImageOrder | TextOrder)),
        edits=((DIRECTED, frozenset({"image_order"})),) if method in ORDERED else (),
    )  # fmt: skip
    packer = Packer(
        image=image_spec(config), text_terms=("next_token", "text_order") if method == "direct" else ("next_token",),
        needs=tuple(need for term in chosen for need in term.needs), terms=chosen, share=share,
    )  # fmt: skip
    laid = tuple(tuple(views.fitting(sample, 0, Counter())) for sample in samples(config))
    theirs.to(device)
    head = nn.Linear(lmm.decoder.shape.width, config.permutations, device=device)
    if method in ORDERED:
        head.load_state_dict(plugins["image_order"].state_dict())
        with torch.no_grad():
            theirs.get_input_embeddings().weight[DRT] = plugins["directed_token"].weight[0]
    for each in (theirs, ours):
        _freeze(each, frozen)
    return Work(config, method, laid, packer, ours.train(), theirs.train(), head, device, compute)


def modules(config: Config, method: str, width: int) -> nn.ModuleDict:
    """Returns the parameters of the plugins."""
    if method not in ORDERED:
        return nn.ModuleDict()
    _, layers, heads, _ = config.text
    dims = Dims(width=width, vocab=VOCAB, layers=layers, heads=heads, image=image_spec(config))
    plugins = nn.ModuleDict(
        {"directed_token": DIRECTED.modules(dims), "image_order": image_order(config).modules(dims)}
    )
    init(plugins, 0)
    return plugins


def image_spec(config: Config) -> ImageSpec:
    """Returns the shape of the images that both encoders take."""
    return ImageSpec(size=14 * config.side, grid=(config.side, config.side), width=config.vision[0])


def peer_model(config: Config) -> nn.Module:
    """Returns transformers' LLaVA with random weights."""
    vision_width, vision_depth, vision_heads = config.vision
    width, depth, heads, mlp = config.text
    vision = hf.CLIPVisionConfig(
        hidden_size=vision_width, intermediate_size=4 * vision_width, num_hidden_layers=vision_depth,
        num_attention_heads=vision_heads,
        image_size=14 * config.side, patch_size=14, projection_dim=vision_width,
    )  # fmt: skip
    text = hf.LlamaConfig(
        hidden_size=width, intermediate_size=mlp, num_hidden_layers=depth, num_attention_heads=heads,
        num_key_value_heads=heads, vocab_size=VOCAB, max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip
    model = hf.LlavaForConditionalGeneration(hf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=config.side**2,
        vision_feature_layer=-2, vision_feature_select_strategy="default", tie_word_embeddings=False,
    ))  # fmt: skip
    scramble(model, 0)
    return model


def _freeze(model: nn.Module, decoder_too: bool) -> None:
    for name, parameter in model.named_parameters():
        vision = "vision" in name
        decoder = "decoder." in name or "language_model" in name or "lm_head" in name
        parameter.requires_grad_(not vision and not (decoder and decoder_too))


def optimizer(*models: nn.Module) -> torch.optim.AdamW:
    """Returns AdamW, equal for both models."""
    trainable = [p for model in models for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trainable, lr=LEARNING_RATE)


def our_step(work: Work, batch: Batch | None = None) -> Callable[[], float]:
    """Returns our optimizer step on a packed batch: all samples by default."""
    batch = (work.batch() if batch is None else batch).to(work.device)
    update = optimizer(work.ours)
    weights = {name: WEIGHTS[name] for name in batch.count}
    return lambda: (
        run_step(work.ours, update, (batch,), weights, clip=None, device=work.device, metrics=False).loss
    )


Peer = Callable[[], float]


def peer_step(work: Work, how: str) -> Peer:
    """Returns the equal step by transformers.

    how: `sdpa` (no maps), `eager` (every pass with maps, forced by `output_attentions`) or `switched` (eager
    only in the pass whose maps are read).
    """
    update = optimizer(work.theirs, work.order_head)
    inputs = {name: _padded(work, name) for name in dict.fromkeys(m.view.name for m in work.views[0])}

    def step() -> float:
        with torch.autocast(work.device.type, work.compute, enabled=work.compute != torch.float32):
            loss = sum(_losses(work, inputs, how))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(work.theirs.parameters(), torch.inf)
        update.step()
        update.zero_grad()
        return float(loss.detach())

    return step


def _losses(work: Work, inputs: dict[str, dict[str, Tensor]], how: str) -> list[Tensor]:
    model, losses = work.theirs, []
    guided = work.method != "llava" and how != "sdpa"
    for name, given in inputs.items():
        kept = {key: t for key, t in given.items() if key not in ("drt", "permutation")}
        maps = guided and name == "main"
        model.set_attn_implementation("eager" if maps or how == "eager" else "sdpa")
        if name == "image_order":
            del kept["labels"]
            hidden = model.model(**kept, use_cache=False).last_hidden_state
            at_drt = hidden[torch.arange(len(hidden)), given["drt"]]
            losses.append(F.cross_entropy(work.order_head(at_drt), given["permutation"]))
            continue
        out = model(**kept, use_cache=False, output_attentions=maps)
        losses.append(WEIGHTS["next_token"] * out.loss)
        if maps:
            losses.append(WEIGHTS["guided_loss"] * (1 - _mass(out.attentions, given)))
    return losses


def _mass(maps: tuple[Tensor, ...], given: dict[str, Tensor]) -> Tensor:
    """Returns the mean over layers, heads and response rows of the attention on image keys."""
    asked_BT, key_BT = given["labels"] >= 0, (given["input_ids"] == IMAGE).float()
    by_layer = [torch.einsum("bhqk,bk->bhq", each, key_BT).mean(1)[asked_BT].mean() for each in maps]
    return torch.stack(by_layer).mean()


def _padded(work: Work, name: str) -> dict[str, Tensor]:
    """Returns one view of every sample, right-padded for transformers."""
    members = [next(m for m in views if m.view.name == name) for views in work.views]
    longest = max(sum(span.n for span in m.layout) for m in members)
    ids = torch.zeros(len(members), longest, dtype=torch.int64)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    pixels, drt = [], []
    for i, member in enumerate(members):
        at = 0
        for span in member.layout:
            place = slice(at, at + span.n)
            ids[i, place] = (
                torch.tensor(span.ids) if span.kind == "text" else IMAGE if span.kind == "image" else DRT
            )
            if span.supervised and member.view.supervision == "train":
                labels[i, place] = torch.tensor(span.ids)
            if span.image is not None:
                pixels.append(work.pixels(span.image))
            at += span.n
        mask[i, :at] = 1
        drt.append(at - 1)
    given = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.stack(pixels), "labels": labels}
    if name == "image_order":
        orders = [m.view.labels["permutation"] for m in members]
        given |= {"drt": torch.tensor(drt), "permutation": torch.tensor(orders)}
    return {key: x.to(work.device) for key, x in given.items()}
