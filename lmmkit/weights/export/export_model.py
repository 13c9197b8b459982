"""The input of an export: a model, its folder's config and tokenizer, and ids for new tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from lmmkit.api.sample import ImageFit
from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.errors import MachineError
from lmmkit.errors.weights import EXPORT_CANNOT_WRITE
from lmmkit.model.decoder import Decoder, DecoderShape
from lmmkit.model.vision import VisionShape, ViT
from lmmkit.runs.files import write_aside
from lmmkit.weights.end_ids import IMAGE, PAD, EndIds, image_id, pad_id

VOCAB_MULTIPLE = 64  # a vocabulary that grows is rounded up to a multiple of this


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Holds the input of an export: the model's parts with weights, its folder's config and tokenizer,
    `image_fit`, the chat template, and the system prompt if it is not the template's own."""

    vision: nn.Module
    connector: nn.Module
    text: Decoder
    config: Mapping[str, Any]
    tokenizer: TextTokenizer
    passthrough: Mapping[str, Tensor]
    image_fit: ImageFit
    template: str
    system: str = ""

    @property
    def has_vision(self) -> bool:
        """Returns whether the model has an encoder."""
        return not isinstance(self.vision, nn.Identity)

    @property
    def shape(self) -> DecoderShape:
        """Returns the decoder's shape."""
        return self.text.shape

    @property
    def vision_shape(self) -> VisionShape:
        """Returns the encoder's shape. `problems` has already refused models without a `ViT`."""
        assert isinstance(self.vision, ViT)
        return self.vision.shape


def family(model: Exported) -> str:
    """Returns the Hugging Face `model_type` for the decoder. The first Qwen-7B is Qwen2 under other names."""
    shape = model.shape
    derived = "qwen3" if shape.qk_norm else "qwen2" if shape.qkv_bias else "llama"
    known = model.config.get("family", derived)
    return "qwen2" if known == "qwen" else known


@contextmanager
def export_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `folder`, which is new or empty, when the block ends.

    Raises `MachineError` if the system refuses to write it. Then nothing of it is left.
    """
    try:
        with write_aside(folder) as aside:
            yield aside
    except (OSError, SafetensorError, MachineError) as error:
        got = error.problems[0].got if isinstance(error, MachineError) else str(error)
        raise MachineError(EXPORT_CANNOT_WRITE.at(str(folder), got=got)) from error


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """Holds the ids and the spellings of the tokens of a row of an image and of padding, and the vocabulary
    size that contains them."""

    image: int
    pad: int | None
    rows: int
    image_word: str = IMAGE
    pad_word: str = PAD


def new_token_ids(model: Exported) -> TokenIds:
    """Returns the ids from the folder's config, else from the tokenizer, else the next free ids, as a loaded model
    has them.

    No id gets two tokens, and no token two ids. The vocabulary grows if it is too small. A model without a
    tokenizer gets no new padding id.
    """
    tokens, config, vocab = model.tokenizer, model.config, model.shape.vocab
    image, pad = config.get("image_token"), config.get("pad")
    if not tokens.size:
        image = vocab if image is None else image
        return TokenIds(image=image, pad=pad, rows=_rows(vocab, image, pad or 0))
    image = image_id(tokens, image, EndIds(tuple(config.get("eos") or ()), pad))
    pad = pad_id(tokens, pad, image)
    return TokenIds(
        image=image, pad=pad, rows=_rows(vocab, image, pad),
        image_word=tokens.spelling(image) if image < tokens.size else IMAGE,
        pad_word=tokens.spelling(pad) if pad < tokens.size else PAD,
    )  # fmt: skip


def _rows(vocab: int, *ids: int) -> int:
    need = max(ids) + 1
    return vocab if need <= vocab else -(-need // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
