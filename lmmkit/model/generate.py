"""Generation over a forest: prompts share what they share, each leaf grows in its reserved rows.

One prompt, a batch of ragged prompts and many questions on one image are the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmmkit.batch import Batch
from lmmkit.forest import Forest, room
from lmmkit.model.cache import LayerCache
from lmmkit.model.lmm import LMM

Chooser = Callable[[Tensor], Tensor]
"""logits_QV -> token ids [Q]."""


def greedy(logits_QV: Tensor) -> Tensor:
    """The most likely token."""
    return logits_QV.argmax(-1)


@dataclass(frozen=True)
class Sampled:
    """Draws from the `top_p` likeliest tokens at `temperature`, by its own generator."""

    temperature: float
    top_p: float
    generator: torch.Generator

    def __call__(self, logits_QV: Tensor) -> Tensor:
        weight_QV, id_QV = (logits_QV / self.temperature).softmax(-1).sort(-1, descending=True)
        before_QV = weight_QV.cumsum(-1) - weight_QV
        weight_QV = weight_QV.masked_fill(before_QV >= self.top_p, 0)
        place_Q1 = torch.multinomial(weight_QV.cpu(), 1, generator=self.generator)
        return id_QV.gather(1, place_Q1.to(id_QV.device)).squeeze(1)


@torch.no_grad()
def generate(
    lmm: LMM,
    batch: Batch,
    leaves: Sequence[int],
    *,
    tokens: Mapping[str, Tensor],
    new: int,
    eos: int,
    choose: Chooser = greedy,
    on_token: Callable[[Tensor], None] = lambda id_Q: None,
) -> list[list[int]]:
    """Up to `new` token ids after each leaf row, the end token left out.

    Args:
        lmm: the model, in eval mode.
        batch: the packed prompts, on the model's device.
        leaves: the last row of each prompt.
        tokens: learned rows by fill source.
        new: most tokens to write, at least 1.
        eos: the id that ends an answer.
        choose: picks a token a leaf from logits [Q, V].
        on_token: told of the tokens of every step, for streaming.
    """
    if new < 1:
        raise ValueError(f"got new = {new}; want at least one token to write")
    device, T = batch.id_T.device, len(batch)
    forest, new_QN = room(batch.forest, leaves, new)
    caches = [LayerCache(len(forest)) for _ in lmm.decoder.blocks]
    attend = lmm.backend.attend(batch.forest, batch.key_T, batch.mass_R, device)
    x_TD = lmm.rows(batch.id_T, batch.fills, batch.pixels_ICXY, tokens)
    hidden_TD = lmm.decode(x_TD, batch.forest.pos_T, [c.recording(attend, T) for c in caches]).hidden_TD
    id_Q = choose(lmm.logits(hidden_TD[torch.as_tensor(leaves, device=device)]))

    key_QM, seen_QM = (torch.from_numpy(a).to(device) for a in _paths(forest, leaves, T, new_QN))
    row_QN, pos_Q = torch.from_numpy(new_QN).to(device), batch.forest.pos_T[torch.as_tensor(leaves)]
    before = key_QM.shape[1] - new
    written = [id_Q]
    done_Q = id_Q == eos
    for step in range(new - 1):
        on_token(id_Q)
        if bool(done_Q.all()):
            break
        upto = before + step + 1
        attends = [c.decoding(row_QN[:, step], key_QM[:, :upto], seen_QM[:, :upto]) for c in caches]
        hidden_QD = lmm.decode(lmm.decoder.embed(id_Q), pos_Q + step + 1, attends).hidden_TD
        id_Q = choose(lmm.logits(hidden_QD))
        written.append(id_Q)
        done_Q |= id_Q == eos
    else:
        on_token(id_Q)
    return [_until(row, eos) for row in torch.stack(written, 1).tolist()]


def _paths(
    forest: Forest, leaves: Sequence[int], prompt_rows: int, new_QN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(key_QM, seen_QM): the cache rows of every leaf's path, left-padded, then its reserved rows."""
    enter, leave = forest.enter_T.numpy(), forest.leave_T.numpy()
    paths = []
    for leaf in leaves:
        at = enter[leaf]
        seen = np.flatnonzero((enter[:prompt_rows] <= at) & (at < leave[:prompt_rows]))
        paths.append(seen)
    longest = max(map(len, paths))
    key_QM = np.zeros((len(leaves), longest + new_QN.shape[1]), np.int64)
    seen_QM = np.ones(key_QM.shape, bool)
    key_QM[:, longest:] = new_QN
    for i, path in enumerate(paths):
        seen_QM[i, : longest - len(path)] = False
        key_QM[i, longest - len(path) : longest] = path
    return key_QM, seen_QM


def _until(ids: list[int], eos: int) -> list[int]:
    return ids[: ids.index(eos)] if eos in ids else ids
