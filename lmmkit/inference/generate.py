"""Generation over a forest: prompts share their common prefixes, and each leaf has a separate cache.

One prompt, a batch of prompts of different lengths and many questions on one image are the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmmkit.api.batch import Batch
from lmmkit.attention.forest import Forest
from lmmkit.inference.kv_cache import LayerCache
from lmmkit.model.vlm import LMM

Chooser = Callable[[Tensor], Tensor]
"""logits_QV -> token ids [Q]."""


def greedy(logits_QV: Tensor) -> Tensor:
    """Returns the most likely tokens."""
    return logits_QV.argmax(-1)


@dataclass(frozen=True)
class Sampled:
    """Draws from the most likely tokens with total probability `top_p` at `temperature`, with `generator`."""

    temperature: float
    top_p: float
    generator: torch.Generator

    def __call__(self, logits_QV: Tensor) -> Tensor:
        weight_QV, id_QV = (logits_QV / self.temperature).softmax(-1).sort(-1, descending=True)
        before_QV = weight_QV.cumsum(-1) - weight_QV
        weight_QV = weight_QV.masked_fill(before_QV >= self.top_p, 0)
        place_Q1 = torch.multinomial(weight_QV.cpu(), 1, generator=self.generator)
        return id_QV.gather(1, place_Q1.to(id_QV.device)).squeeze(1)


@torch.inference_mode()
def generate(
    lmm: LMM,
    batch: Batch,
    leaves: Sequence[int],
    *,
    tokens: Mapping[str, Tensor],
    max_new_tokens: int,
    eos: int | Collection[int],
    choose: Chooser = greedy,
    on_token: Callable[[Tensor], None] = lambda id_Q: None,
) -> list[list[int]]:
    """Returns up to `max_new_tokens` token ids after each leaf row, without the end token.

    Args:
        lmm: the model, in eval mode.
        batch: the packed prompts, on the model's device.
        leaves: the last row of each prompt.
        tokens: learned tokens by scatter source.
        max_new_tokens: maximum number of tokens to generate, at least 1.
        eos: the ids that end an answer.
        choose: chooses a token for each leaf from logits [Q, V].
        on_token: called with the tokens of each step, for streaming.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    ends = (eos,) if isinstance(eos, int) else tuple(eos)
    device, leaf_Q = batch.id_T.device, torch.as_tensor(leaves)
    key_QM, visible_QM = _paths(batch.forest, leaves)
    caches = [LayerCache(key_QM.to(device), max_new_tokens) for _ in lmm.decoder.blocks]
    read_T = torch.zeros(len(batch), dtype=torch.bool).index_fill(0, leaf_Q, True)
    attention_fns = lmm.attention_fns(batch.attention, replace(batch.attention, read_T=read_T), device)
    recording = [
        cache.recording(attention_fn) for cache, attention_fn in zip(caches, attention_fns, strict=True)
    ]
    x_TD = lmm.rows(batch, lmm.project(lmm.encode(batch.pixels_ICXY)), tokens)
    id_Q = choose(lmm.logits(lmm.decode(x_TD, batch.forest.pos_T, recording).at(leaf_Q.to(device))))

    padded, M = not bool(visible_QM.all()), key_QM.shape[1]
    visible_Q11M = F.pad(visible_QM, (0, max_new_tokens), value=True)[:, None, None].to(device)
    pos_Q = batch.forest.pos_T[leaf_Q].to(device)
    end_E = torch.tensor(ends, dtype=torch.int64, device=device)
    generated = [id_Q]
    done_Q = torch.isin(id_Q, end_E)
    for step in range(max_new_tokens - 1):
        on_token(id_Q)
        if bool(done_Q.all()):
            break
        mask_Q11M = visible_Q11M[..., : M + step + 1] if padded else None
        attention_fns = [cache.decoding(M + step, mask_Q11M) for cache in caches]
        hidden_QD = lmm.decode(lmm.decoder.embed(id_Q), pos_Q + step + 1, attention_fns).hidden_WD
        id_Q = choose(lmm.logits(hidden_QD))
        generated.append(id_Q)
        done_Q |= torch.isin(id_Q, end_E)
    else:
        on_token(id_Q)
    return [_until(ids, ends) for ids in torch.stack(generated, 1).tolist()]


def _paths(forest: Forest, leaves: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Returns (key_QM, visible_QM): the rows of each leaf's path, padded on the left, and their mask."""
    enter, leave = forest.enter_T.numpy(), forest.leave_T.numpy()
    paths = [np.flatnonzero((enter <= enter[leaf]) & (enter[leaf] < leave)) for leaf in leaves]
    longest = max(map(len, paths))
    key_QM = np.zeros((len(leaves), longest), np.int64)
    visible_QM = np.zeros(key_QM.shape, bool)
    for i, path in enumerate(paths):
        key_QM[i, longest - len(path) :] = path
        visible_QM[i, longest - len(path) :] = True
    return torch.from_numpy(key_QM), torch.from_numpy(visible_QM)


def _until(ids: list[int], ends: Collection[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
