"""RoPE frequencies and their published scalings to longer contexts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Describes how rotary angles grow with position.

    `linear` divides all frequencies by `factor`. `llama3` divides only those whose wavelength is long
    compared with the `original` context, with a ramp between `low` and `high` turns per context. `yarn`
    has a ramp between `slow` and `fast` turns (Peng et al., 2023), and multiplies the sines and cosines
    by `magnitude` (0 = 0.1 ln(factor) + 1). `dynamic` changes sequences longer than `original`, which are
    not built: it is kept for exports.
    """

    theta: float = 1e4
    scaling: Literal["none", "linear", "llama3", "yarn", "dynamic"] = "none"
    factor: float = 1.0
    original: int = 0
    low: float = 1.0
    high: float = 4.0
    fast: float = 32.0
    slow: float = 1.0
    magnitude: float = 0.0

    def frequencies(self, size: int, device: torch.device) -> Tensor:
        """Returns [K / 2] float32, in radians per position, for heads of `size`."""
        steps = torch.arange(0, size, 2, device=device, dtype=torch.float32) / size
        plain = self.theta**-steps
        match self.scaling:
            case "none" | "dynamic":
                return plain
            case "linear":
                return plain / self.factor
            case "llama3":
                turns = self.original * plain / (2 * math.pi)  # within the original context
                kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
                return kept * plain + (1 - kept) * plain / self.factor
            case "yarn":
                first, last = math.floor(self._pair(size, self.fast)), math.ceil(self._pair(size, self.slow))
                first, last = max(first, 0), min(last, size - 1)
                pair = torch.arange(size // 2, device=device, dtype=torch.float32)
                slowed = ((pair - first) / max(last - first, 0.001)).clamp(0, 1)
                return slowed * plain / self.factor + (1 - slowed) * plain
            case _:
                assert_never(self.scaling)

    @property
    def scale(self) -> float:
        """Returns the factor of sines and cosines."""
        if self.scaling != "yarn" or self.factor <= 1:
            return 1.0
        return self.magnitude or 0.1 * math.log(self.factor) + 1.0

    def _pair(self, size: int, turns: float) -> float:
        """Returns the (fractional) index of the pair that makes `turns` turns within the original context."""
        return size * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(self.theta))


def rope_angles(pos_T: Tensor, size: int, rope: Rope) -> tuple[Tensor, Tensor]:
    """Returns (cos, sin) of rotary positions, each [T, 1, K / 2] float32, in LLaMA's half-split layout."""
    angle_T1K = (pos_T[:, None].float() * rope.frequencies(size, pos_T.device)).unsqueeze(1)
    return rope.scale * angle_T1K.cos(), rope.scale * angle_T1K.sin()
