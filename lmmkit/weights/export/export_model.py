"""What an export works on: a model, its folder's config and tokenizer, and ids that may be new."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.model.decoder import Decoder, DecoderShape
from lmmkit.model.vision import VisionShape, ViT

IMAGE, PAD = "<image>", "<pad>"
ROUND = 64  # rows of a vocabulary that grows come in multiples of this


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export needs to know: the model's parts with values, its folder's config and tokenizer,
    and how it speaks."""

    vision: nn.Module
    connector: nn.Module
    text: Decoder
    config: Mapping[str, Any]
    tokenizer: TextTokenizer
    passthrough: Mapping[str, Tensor]
    image_fit: str
    template: str

    @property
    def sees(self) -> bool:
        """Whether there is an encoder."""
        return not isinstance(self.vision, nn.Identity)

    @property
    def shape(self) -> DecoderShape:
        """The decoder's."""
        return self.text.shape

    @property
    def eye(self) -> VisionShape:
        """The encoder's; `problems` has refused what has none."""
        assert isinstance(self.vision, ViT)
        return self.vision.shape


def family(model: Exported) -> str:
    """The public family that says the decoder: Qwen-7B as first published is a Qwen2 in all but names."""
    shape = model.shape
    derived = "qwen3" if shape.qk_norm else "qwen2" if shape.qkv_bias else "llama"
    known = model.config.get("family", derived)
    return "qwen2" if known == "qwen" else known


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """The ids of `<image>` and of what pads, and the rows of a vocabulary that holds them."""

    image: int
    pad: int | None
    rows: int


def new_token_ids(model: Exported) -> TokenIds:
    """The folder's own ids, else the tokenizer's, else the next that are free; rows grow where none are
    to spare. A model without a tokenizer is not padded."""
    tokens, config, vocab = model.tokenizer, model.config, model.shape.vocab
    image, pad = config.get("image_token"), config.get("pad")
    if tokens.size:
        image = tokens.control(IMAGE) if image is None else image
        image = tokens.size if image is None else image
        pad = tokens.control(PAD) if pad is None else pad
        pad = max(tokens.size, image + 1) if pad is None else pad
    image = vocab if image is None else image
    need = max(image, pad or 0) + 1
    return TokenIds(image=image, pad=pad, rows=vocab if need <= vocab else -(-need // ROUND) * ROUND)
