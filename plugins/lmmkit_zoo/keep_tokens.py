"""VisionZip (arXiv 2412.04467): of an image's tokens only the most informative go to the decoder.

Kept are the `count` tokens that are least alike the mean of their image, in their order; at a tie the first. They are
chosen before the connector, so it computes only these. Simplified: the paper ranks tokens by the attention that they
get in the encoder, and merges the others into a few more. Training and answering should use one type of numbers:
rounded features may rank two tokens the other way round.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.api import Dims, ImageReducer, hookimpl


@dataclass(frozen=True, kw_only=True)
class KeepTokens(ImageReducer):
    """Keeps `count` of the encoder's tokens of each image."""

    count: int = 64

    def check(self, dims: Dims) -> str:
        most = dims.image.tokens
        return "" if 1 <= self.count <= most else f"count: {self.count}, which is not 1 to {most}"

    def tokens(self, dims: Dims) -> int:
        return self.count

    def reduce(
        self, features_INE: Tensor, connect: Callable[[Tensor], Tensor], module: nn.Module | None
    ) -> Tensor:
        x_INE = features_INE.detach().float()
        alike_IN = F.cosine_similarity(x_INE, x_INE.mean(1, keepdim=True), dim=-1)
        kept_IK = alike_IN.sort(dim=-1, stable=True).indices[:, : self.count].sort(-1).values
        return connect(features_INE.gather(1, kept_IK[..., None].expand(-1, -1, features_INE.shape[-1])))


@hookimpl
def lmmkit_components():
    return {"keep_tokens": KeepTokens}
