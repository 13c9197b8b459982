"""A frozen model whose logits terms compare with those of the trained one. It shares nothing with that model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lmmkit.api.batch import Batch
from lmmkit.model.cross_entropy import FixedLogits
from lmmkit.model.teacher import computing
from lmmkit.model.vlm import LMM, ModelOutput


@dataclass(frozen=True)
class TeacherRows:
    """Holds the states of a teacher at the rows of a micro-batch, and its head."""

    out: ModelOutput
    weight_VD: Tensor
    compute: torch.dtype

    def logits(self, row_Q: Tensor) -> FixedLogits:
        """Returns the logits of these rows, which are computed where they are read."""
        with computing(self.weight_VD.device, self.compute):
            return FixedLogits(self.out.at(row_Q), self.weight_VD)


class TeacherModel(nn.Module):
    """Holds a frozen model that reads the packed rows of the trained one, with images of its own size.

    The objective keeps it outside its own modules, so it is in no optimizer, checkpoint or model folder, and stays in
    evaluation mode. `compute`: the type in which it computes on CUDA.
    """

    def __init__(self, lmm: LMM, compute: torch.dtype):
        super().__init__()
        self.lmm, self.compute = lmm, compute
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, batch: Batch, pixels_ICXY: Tensor) -> TeacherRows:
        """Returns the states of the rows that are read. `pixels_ICXY`: the images of the batch, as this model reads
        them."""
        own = replace(batch.reading(()), pixels_ICXY=pixels_ICXY)
        with computing(batch.id_T.device, self.compute):
            return TeacherRows(self.lmm(own, {}), self.lmm.decoder.head.weight, self.compute)
