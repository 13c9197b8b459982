"""A frozen model whose features terms read. It shares nothing with the model that is trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.api.model_info import ImageSpec


class Teacher(nn.Module):
    """Holds a frozen encoder. The objective keeps it outside its own modules, so it is in no optimizer, checkpoint or
    model folder, and stays in evaluation mode. `compute`: the type in which it computes on CUDA."""

    def __init__(self, encoder: nn.Module, image: ImageSpec, compute: torch.dtype):
        super().__init__()
        self.encoder, self.image, self.compute = encoder, image, compute
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, pixels_ICXY: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns the features of images on a grid of other patches, [I, N, width], in float32 or wider."""
        dtype = next(self.encoder.parameters()).dtype
        with computing(pixels_ICXY.device, self.compute):
            x_IND = self.encoder(pixels_ICXY.to(dtype))
        return on_grid(x_IND.to(torch.promote_types(x_IND.dtype, torch.float32)), self.image.grid, grid)


def computing(device: torch.device, compute: torch.dtype) -> torch.autocast:
    """Returns the context in which a model computes in this type: autocast, unless it is float32."""
    return torch.autocast(device.type, compute, enabled=compute != torch.float32)


def on_grid(x_IND: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Returns features of a grid of patches on another one: means where it is coarser, else bilinear ones."""
    if grid == to:
        return x_IND
    x_IDXY = x_IND.transpose(1, 2).unflatten(2, grid)
    if to[0] <= grid[0] and to[1] <= grid[1]:
        x_IDXY = F.adaptive_avg_pool2d(x_IDXY, to)
    else:
        x_IDXY = F.interpolate(x_IDXY, to, mode="bilinear", align_corners=False)
    return x_IDXY.flatten(2).transpose(1, 2)
