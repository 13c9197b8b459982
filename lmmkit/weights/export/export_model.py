"""The input of an export: a model, its folder's config and tokenizer, and ids for new tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.model.decoder import Decoder, DecoderShape
from lmmkit.model.vision import VisionShape, ViT

IMAGE, PAD = "<image>", "<pad>"
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
    image_fit: str
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


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """Holds the ids of `<image>` and of the padding token, and the vocabulary size that contains them."""

    image: int
    pad: int | None
    rows: int


def new_token_ids(model: Exported) -> TokenIds:
    """Returns the ids from the folder's config, else from the tokenizer, else the next free ids.

    The vocabulary grows if it is too small. A model without a tokenizer gets no new padding id.
    """
    tokens, config, vocab = model.tokenizer, model.config, model.shape.vocab
    image, pad = config.get("image_token"), config.get("pad")
    if tokens.size:
        image = tokens.control(IMAGE) if image is None else image
        image = tokens.size if image is None else image
        pad = tokens.control(PAD) if pad is None else pad
        pad = max(tokens.size, image + 1) if pad is None else pad
    image = vocab if image is None else image
    need = max(image, pad or 0) + 1
    return TokenIds(
        image=image, pad=pad, rows=vocab if need <= vocab else -(-need // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    )
