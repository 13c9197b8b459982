"""Runs on 1, 2 and 3 ranks: the same samples, the same figures, every parameter reached."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from lmmkit.training.ranks import joined
from lmmkit.training.run import train
from tests import world
from tests.training.test_run import figures

NEAR = 1e-6


def trained(n, recipe, folder):
    """A run on `n` ranks."""
    world.run(n, lambda rank: train(recipe, out=folder / "run") and None, folder)
    return folder / "run"


def test_plain_values_are_agreed_on(tmp_path):
    def body(rank):
        with joined() as ranks:
            assert (ranks.world, ranks.rank, ranks.first) == (3, rank, rank == 0)
            assert ranks.gather({"rank": rank, "long": "x" * rank * 5000}) == [
                {"rank": r, "long": "x" * r * 5000} for r in range(3)
            ]
            assert ranks.most(rank * 7) == 14 and ranks.tell(rank + 40) == 40
            assert ranks.beside().gather([float("inf"), None]) == [[float("inf"), None]] * 3

    world.run(3, body, tmp_path)


def test_probe(tiny, tmp_path):
    import time
    from lmmkit.rundir import RunDir
    recipe = tiny()
    t=time.time(); one = figures(train(recipe, out=tmp_path / "one").run); print(time.time()-t)
    for n in (2, 3):
        t=time.time(); two = figures(RunDir(trained(n, recipe, tmp_path / str(n)))); print(n,time.time()-t)
        for a, b in zip(one, two, strict=True):
            assert a.keys() == b.keys()
            print({k: (a[k], b[k]) for k in a if isinstance(a[k], float) and a[k] and abs(a[k]/b[k]-1)>1e-6})
        print(world.said_by(tmp_path/str(n),0))
