"""Distillation (Hinton et al., arXiv 1503.02531): a model learns all predictions of a larger one, not only targets.

`forward` is KL(teacher || model), as in LLaVA-KD (arXiv 2410.16236) and NVIDIA NeMo; `reverse` is KL(model || teacher),
which MiniLLM (arXiv 2306.08543) prefers for a small model that cannot do all that the teacher does; `js` is half way
between both, the Jensen-Shannon divergence (GKD, arXiv 2306.13649). `distill_stored` needs no teacher in training:
`lmmkit reference TEACHER RECIPE --stage STAGE --top-k 8 --out FILE` writes the likeliest tokens into the records.

Simplified: text of the records only, where MiniLLM and GKD also learn from answers that the model writes itself; rows
of answers only, where LLaVA-KD also compares the rows of images, and trains in three stages.
"""

import base64
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lmmkit.api import Dims, RowLoss, Sample, hookimpl


@dataclass(frozen=True, kw_only=True)
class Distill(RowLoss):
    """Compares the model's predictions with a teacher's, the mean over supervised tokens.

    teacher: a name of the recipe's `teachers`. temperature: by which the logits of both are divided; the value is
    multiplied by its square, so that gradients keep their size.
    """

    teacher: str
    divergence: Literal["forward", "reverse", "js"] = "forward"
    temperature: float = 1.0

    def check(self, dims: Dims) -> str:
        return "" if self.temperature > 0 else f"temperature: {self.temperature}, which is not above 0"

    def rows(self, logits_CV: Tensor, target_C: Tensor, teacher_CV: Tensor) -> Tensor:
        both = [(each / self.temperature).log_softmax(-1) for each in (logits_CV, teacher_CV)]
        return self.temperature**2 * self._divergence(*both)

    def _divergence(self, model_CV: Tensor, teacher_CV: Tensor) -> Tensor:
        """Returns the divergence of each row, from log-probabilities."""
        if self.divergence == "forward":
            return kl(teacher_CV, model_CV)
        if self.divergence == "reverse":
            return kl(model_CV, teacher_CV)
        middle_CV = torch.logaddexp(model_CV, teacher_CV) - math.log(2)
        return (kl(model_CV, middle_CV) + kl(teacher_CV, middle_CV)) / 2


def kl(p_CV: Tensor, q_CV: Tensor) -> Tensor:
    """Returns KL(p || q) of each row, [C], from log-probabilities."""
    return (p_CV.exp() * (p_CV - q_CV)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class DistillStored(RowLoss):
    """Adds KL(teacher || model) over the stored tokens and one more event, any other token.

    field: of the records, as `lmmkit reference --top-k` writes it.
    """

    field: str = "top_k"

    def labels(self, sample: Sample, dims: Dims) -> dict[str, np.ndarray]:
        if self.field not in sample.meta:
            raise ValueError(
                f"sample {sample.key} has no `{self.field}`: write it by `lmmkit reference --top-k`"
            )
        k, _, rows = str(sample.meta[self.field]).partition(" ")
        both = np.frombuffer(base64.b64decode(rows), "<i4").reshape(-1, 2, int(k))
        return {"tokens": both[:, 0], "logp": both[:, 1].view("<f4")}

    def rows(self, logits_CV: Tensor, target_C: Tensor, tokens: Tensor, logp: Tensor) -> Tensor:
        lse_C1 = logits_CV.logsumexp(-1, keepdim=True)
        others_C = logits_CV.scatter(1, tokens, -math.inf).logsumexp(-1) - lse_C1[:, 0]
        rest_C = (1 - logp.exp().sum(-1)).clamp(min=0)
        stored = (logp.exp() * (logp - logits_CV.gather(1, tokens) + lse_C1)).sum(-1)
        return stored + torch.xlogy(rest_C, rest_C) - rest_C * others_C


@hookimpl
def lmmkit_components():
    return {"distill": Distill, "distill_stored": DistillStored}
