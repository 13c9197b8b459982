"""Image-order reconstruction: a classifier predicts which of K permutations shuffled the tiles."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.api import AuxTask, Ctx, Dims, HiddenAt, HiddenMean, Metric, Puzzle, Sample, Select, View

from .permutations import permutations


@dataclass(frozen=True)
class Shuffle:
    """Moves tile `order[i]` of a `grid` x `grid` image to position i. `undo` returns the inverse."""

    grid: int
    order: tuple[int, ...]

    def __call__(self, pixels_CXY: Tensor) -> Tensor:
        g, (c, x, y) = self.grid, pixels_CXY.shape
        tiles = pixels_CXY.reshape(c, g, x // g, g, y // g).permute(1, 3, 0, 2, 4).flatten(0, 1)
        tiles = tiles[list(self.order)].unflatten(0, (g, g))
        return tiles.permute(2, 0, 3, 1, 4).reshape(c, x, y)

    def undo(self) -> "Shuffle":
        return Shuffle(self.grid, tuple(np.argsort(self.order).tolist()))


@dataclass(frozen=True, kw_only=True)
class ImageOrder(AuxTask):
    """Shuffles the `grid` x `grid` tiles of each image in the same way, and predicts the permutation.

    grid: tiles in a row and in a column.
    permutations: their number K.
    seed: for drawing the K permutations.
    choose: `seed`, the first K that are drawn; or `hamming`, K that are far apart.
    read: the directed token (`token`), or the mean of the image rows (`visual`, the paper's ablation 2).

    A linear layer maps the hidden state to K logits; the loss is their cross entropy. The text of the
    view is context, and not supervised.
    """

    grid: int
    permutations: int
    seed: int = 0
    choose: Literal["seed", "hamming"] = "seed"
    read: Literal["token", "visual"] = "token"

    @property
    def needs(self) -> tuple[HiddenAt | HiddenMean]:
        if self.read == "token":
            return (HiddenAt(Select(view=self.name, token_name="drt")),)
        return (HiddenMean(Select(view=self.name, kind="image")),)

    def check(self, dims: Dims) -> str:
        if self.grid < 2 or any(side % self.grid for side in dims.image.grid):
            return f"grid: {self.grid}, which does not divide the {dims.image.grid} patches of an image"
        if self.seed < 0:
            return f"seed: {self.seed}, which is below 0"
        most = min(math.factorial(self.grid**2) - 1, 10**6)
        fits = 2 <= self.permutations <= most
        return "" if fits else f"permutations: {self.permutations}, which is not 2 to {most}"

    def modules(self, dims: Dims) -> nn.Linear:
        return nn.Linear(dims.width, self.permutations)

    def views(self, sample: Sample, rng: np.random.Generator) -> list[View]:
        if not sample.images:
            return []
        table = permutations(self.grid**2, self.permutations, self.seed, self.choose)
        k = int(rng.integers(len(table)))
        # all of them: an unshuffled copy of an image would show how its tiles were
        images = (replace(image, edit=Shuffle(self.grid, table[k])) for image in sample.images)
        shuffled = replace(sample, images=tuple(images))
        return [View(sample=shuffled, labels={"permutation": k})]

    def value(self, ctx: Ctx) -> Tensor:
        if not len(ctx[self.needs[0]]):
            return ctx[self.needs[0]].float().sum()
        return F.cross_entropy(self._logits(ctx), ctx.label("permutation"), reduction="sum")

    def chance(self, dims: Dims) -> float:
        return math.log(self.permutations)

    def metrics(self, ctx: Ctx) -> dict[str, Metric]:
        if not len(ctx[self.needs[0]]):
            return {}
        right = self._logits(ctx).argmax(-1) == ctx.label("permutation")
        return {"accuracy": Metric(right.float().sum(), len(right) / self.permutations)}

    def images(self, ctx: Ctx) -> dict[str, Tensor]:
        if not len(ctx[self.needs[0]]):
            return {}
        table = permutations(self.grid**2, self.permutations, self.seed, self.choose)
        predicted = int(self._logits(ctx)[0].argmax())
        view = ctx.batch.views_of(self.name)[0]
        shuffled = ctx.batch.first_image(view)
        return {"shuffled": shuffled, "restored": Shuffle(self.grid, table[predicted]).undo()(shuffled)}

    def puzzles(self, ctx: Ctx) -> list[Puzzle]:
        table = permutations(self.grid**2, self.permutations, self.seed, self.choose)
        found, gold = [], tuple(range(self.grid**2))
        for p_K, k in zip(self._logits(ctx).softmax(-1), ctx.label("permutation").tolist(), strict=True):
            best, chance = int(p_K.argmax()), 1 / self.permutations
            predicted = tuple(table[k][i] for i in np.argsort(table[best]))
            puzzle = Puzzle(shuffled=table[k], predicted=predicted, gold=gold, chance=chance, grid=self.grid)
            found.append(replace(puzzle, p_predicted=float(p_K[best]), p_gold=float(p_K[k])))
        return found

    def _logits(self, ctx: Ctx) -> Tensor:
        assert ctx.module is not None, "`modules` builds it"
        logits = ctx.module(ctx[self.needs[0]])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
