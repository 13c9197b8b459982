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
LEAST_TEMPERATURE = 1e-30  # a temperature that float32 holds
Feed = Mapping[int, Tensor]
"""The learned rows [n, D] that follow a token, by its id."""


def greedy(logits_QV: Tensor) -> Tensor:
    """Returns the most likely tokens."""
    return logits_QV.argmax(-1)


@dataclass(frozen=True)
class Sampled:
    """Draws from the most likely tokens with total probability `top_p` at `temperature`, with `generator`.

    The most likely token is always among them. `temperature`: above 0; a lower one than `LEAST_TEMPERATURE` counts as
    that.
    """

    temperature: float
    top_p: float
    generator: torch.Generator

    def __call__(self, logits_QV: Tensor) -> Tensor:
        below_QV = (logits_QV - logits_QV.amax(-1, keepdim=True)).float()  # so that nothing overflows above 0
        weight_QV, id_QV = (
            (below_QV / max(self.temperature, LEAST_TEMPERATURE)).softmax(-1).sort(-1, descending=True)
        )
        before_QV = weight_QV.cumsum(-1) - weight_QV
        weight_QV[:, 1:].masked_fill_(before_QV[:, 1:] >= self.top_p, 0)
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
    feeds: Sequence[Feed] = (),
) -> list[list[int]]:
    """Returns up to `max_new_tokens` token ids after each leaf row, without the end token.

    With `feeds`, an answer also ends where its rows fill the context.

    Args:
        lmm: the model, in eval mode.
        batch: the packed prompts, on the model's device.
        leaves: the last row of each prompt.
        tokens: learned tokens by scatter source.
        max_new_tokens: maximum number of tokens to generate, at least 1.
        eos: the ids that end an answer.
        choose: chooses a token for each leaf from logits [Q, V].
        on_token: called with the tokens of each step, for streaming.
        feeds: for each leaf, what follows the tokens that the model writes; not given = nothing.

    Raises:
        ValueError: `max_new_tokens` below 1.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    ends = (eos,) if isinstance(eos, int) else tuple(eos)
    device, leaf_Q = batch.id_T.device, torch.as_tensor(leaves)
    key_QM, visible_QM = _paths(batch.forest, leaves)
    most = max((len(x_ND) for feed in feeds for x_ND in feed.values()), default=0)
    room = max_new_tokens * (1 + most)
    caches = [LayerCache(key_QM.to(device), room) for _ in lmm.decoder.blocks]
    read_T = torch.zeros(len(batch), dtype=torch.bool).index_fill(0, leaf_Q, True)
    attention_fns = lmm.attention_fns(batch.attention, replace(batch.attention, read_T=read_T), device)
    recording = [
        cache.recording(attention_fn) for cache, attention_fn in zip(caches, attention_fns, strict=True)
    ]
    x_TD = lmm.rows(batch, lmm.project(lmm.encode(batch)), tokens)
    id_Q = choose(lmm.logits(lmm.decode(x_TD, batch.forest.pos_T, recording).at(leaf_Q.to(device))))

    visible_QM = F.pad(visible_QM, (0, room), value=True).to(device)
    grown = _Grown(lmm, caches, visible_QM, key_QM.shape[1], batch.forest.pos_T[leaf_Q].to(device))
    end_E = torch.tensor(ends, dtype=torch.int64, device=device)
    written_Q, fits_Q = id_Q, torch.ones_like(id_Q, dtype=torch.bool)
    generated = [written_Q]
    done_Q = torch.isin(written_Q, end_E)
    for _ in range(max_new_tokens - 1):
        on_token(written_Q)
        if bool(done_Q.all()):
            break
        hidden_QD = grown.add(lmm.decoder.embed(id_Q))
        if feeds:
            hidden_QD, fits_Q = _fed(grown, hidden_QD, feeds, id_Q.masked_fill(done_Q, -1).tolist())
        id_Q = choose(lmm.logits(hidden_QD))
        written_Q = id_Q.where(fits_Q, end_E[0]) if feeds else id_Q
        generated.append(written_Q)
        done_Q |= torch.isin(written_Q, end_E)
    else:
        on_token(written_Q)
    return [_until(ids, ends) for ids in torch.stack(generated, 1).tolist()]


class _Grown:
    """Adds rows to Q sequences. `visible_QM` marks the rows of each among all columns of the caches, `at` is the
    next column, `pos_Q` the position of the last row of each sequence."""

    def __init__(self, lmm: LMM, caches: Sequence[LayerCache], visible_QM: Tensor, at: int, pos_Q: Tensor):
        self.lmm, self.caches, self.visible_QM, self.at, self.pos_Q = lmm, caches, visible_QM, at, pos_Q
        self.padded = not bool(visible_QM.all())

    def add(self, x_QD: Tensor) -> Tensor:
        """Adds one row to each sequence. Returns its state after the final norm, [Q, D]."""
        self.pos_Q = self.pos_Q + 1
        mask_Q11M = self.visible_QM[:, None, None, : self.at + 1] if self.padded else None
        attention_fns = [cache.decoding(self.at, mask_Q11M) for cache in self.caches]
        self.at += 1
        return self.lmm.decode(x_QD, self.pos_Q, attention_fns).hidden_WD

    def add_to(self, some_Q: Tensor, x_QD: Tensor) -> Tensor:
        """Adds one row to the sequences of `some_Q` only. Returns [Q, D]; the states of the others have no meaning."""
        self.visible_QM[:, self.at] = some_Q
        self.padded = True
        before_Q = self.pos_Q
        hidden_QD = self.add(x_QD)
        self.pos_Q = self.pos_Q.where(some_Q, before_Q)
        return hidden_QD


def _fed(
    grown: _Grown, hidden_QD: Tensor, feeds: Sequence[Feed], ids: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Adds the learned rows that follow the tokens `ids`. Returns the last state of each sequence, and whether the
    sequence has space for a next token; one without space for its learned rows gets none."""
    context = grown.lmm.decoder.shape.context
    none_ND = hidden_QD.new_empty(0, hidden_QD.shape[1])
    rows = [feed.get(token, none_ND) for feed, token in zip(feeds, ids, strict=True)]
    fits = [at + len(x_ND) + 1 < context for at, x_ND in zip(grown.pos_Q.tolist(), rows, strict=True)]
    rows = [x_ND if fit else none_ND for x_ND, fit in zip(rows, fits, strict=True)]
    for i in range(max(map(len, rows))):
        some_Q = torch.tensor([i < len(x_ND) for x_ND in rows], device=hidden_QD.device)
        zero_D = hidden_QD.new_zeros(hidden_QD.shape[1])
        x_QD = torch.stack([x_ND[i].to(zero_D) if i < len(x_ND) else zero_D for x_ND in rows])
        hidden_QD = grown.add_to(some_Q, x_QD).where(some_Q[:, None], hidden_QD)
    return hidden_QD, torch.tensor(fits, device=hidden_QD.device)


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
