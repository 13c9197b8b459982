"""K distinct permutations of n tiles, without the identity."""

from functools import cache
from typing import Literal

import numpy as np


@cache
def permutations(
    n: int, k: int, seed: int, choose: Literal["seed", "hamming"]
) -> tuple[tuple[int, ...], ...]:
    """Returns K permutations: the first K that are drawn (`seed`), or K that are far apart (`hamming`).

    `hamming` chooses greedily from a random pool: each permutation has the largest possible Hamming
    distance to the nearest one before it. With many tiles, random permutations are almost as far apart.
    """
    rng = np.random.default_rng([seed, n, k])
    pool = _distinct(rng, n, k if choose == "seed" else min(100 * k, 20_000))
    if choose == "hamming":
        nearest = np.full(len(pool), n + 1)
        picked = [0]
        while len(picked) < k:
            nearest = np.minimum(nearest, (pool != pool[picked[-1]]).sum(1))
            picked.append(int(nearest.argmax()))
        pool = pool[picked]
    return tuple(tuple(row) for row in pool[:k].tolist())


def _distinct(rng: np.random.Generator, n: int, wanted: int) -> np.ndarray:
    found: dict[bytes, np.ndarray] = {np.arange(n).tobytes(): np.arange(n)}
    most = np.prod(np.arange(1, min(n, 20) + 1, dtype=float))
    while len(found) <= min(wanted, most - 1):
        row = rng.permutation(n)
        found.setdefault(row.tobytes(), row)
    return np.stack(list(found.values())[1:])
