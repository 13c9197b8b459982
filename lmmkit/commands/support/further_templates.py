"""What `lmmkit plugins new` writes for the kinds weight, rows, step, reducer and connector."""

WEIGHT = '''"""NAME: a weight for each row of the next-token loss."""

from dataclasses import dataclass

from torch import Tensor

from lmmkit.api import Ctx, Dims, LogProb, Select, TokenWeight, hookimpl


@dataclass(frozen=True, kw_only=True)
class CLASS(TokenWeight):
    """Lets tokens that the model already predicts count less, but never less than `floor`."""

    floor: float = 0.1
    needs = (LogProb(Select()),)

    def check(self, dims: Dims) -> str:
        return "" if 0 <= self.floor <= 1 else f"floor: {self.floor}, which is not 0 to 1"

    def weigh(self, ctx: Ctx) -> Tensor:
        return (1 - ctx[self.needs[0]].exp()).clamp(min=self.floor)


@hookimpl
def lmmkit_components():
    return {"NAME": CLASS}
'''
WEIGHT_TEST = """

def test_a_token_that_is_certain_has_the_least_weight():
    weight = CLASS(name="NAME", floor=0.25)
    (need,) = weight.needs
    n = len(fake_ctx(weight)[need])
    assert weight.weigh(fake_ctx(weight, taps={need: torch.zeros(n)})).tolist() == [0.25] * n
    half = weight.weigh(fake_ctx(weight, taps={need: torch.full((n,), 0.5).log()}))
    assert torch.allclose(half, torch.full((n,), 0.5))
"""
ROWS = '''"""NAME: a term from all logits of each row that predicts a token of an answer."""

import math
from dataclasses import dataclass

from torch import Tensor

from lmmkit.api import Dims, RowLoss, hookimpl


@dataclass(frozen=True, kw_only=True)
class CLASS(RowLoss):
    """Lowers the probability of the most probable token, where it is above `most`."""

    most: float = 0.9

    def check(self, dims: Dims) -> str:
        return "" if 0 < self.most < 1 else f"most: {self.most}, which is not between 0 and 1"

    def rows(self, logits_CV: Tensor, target_C: Tensor) -> Tensor:
        best_C = logits_CV.max(-1).values - logits_CV.logsumexp(-1)
        return (best_C - math.log(self.most)).clamp(min=0)


@hookimpl
def lmmkit_components():
    return {"NAME": CLASS}
'''
ROWS_TEST = """

def test_only_rows_that_are_too_certain_cost_something():
    logits = torch.tensor([[0.0, 0.0], [100.0, 0.0]])
    none, some = CLASS(name="NAME", most=0.5).rows(logits, torch.tensor([0, 0])).tolist()
    assert none == 0 and abs(some - 0.6931472) < 1e-5
"""
STEP = '''"""NAME: a term over all items of a step together, of all micro-batches and ranks."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.api import Ctx, HiddenMean, Metric, Select, StepTerm, hookimpl


@dataclass(frozen=True, kw_only=True)
class CLASS(StepTerm):
    """Moves the mean states of answers apart, where two of a step are more alike than `most`."""

    most: float = 0.5
    needs = (HiddenMean(Select(role="response")),)

    def embed(self, ctx: Ctx) -> Tensor:
        return F.normalize(ctx[self.needs[0]].float(), dim=-1)

    def step_value(self, items: Tensor, module: nn.Module | None) -> Tensor:
        own = torch.ones(len(items), device=items.device).diag()
        alike = items @ items.T - 2 * own  # no item is compared with itself
        return (alike - self.most).clamp(min=0).mean(1).sum()

    def metrics(self, ctx: Ctx) -> dict[str, Metric]:
        return {"norm": Metric(ctx[self.needs[0]].float().norm(dim=-1).sum(), 0.0)}


@hookimpl
def lmmkit_components():
    return {"NAME": CLASS}
'''
STEP_TEST = """

def test_states_at_right_angles_cost_nothing_and_equal_ones_do():
    term = CLASS(name="NAME", most=0.5)
    assert float(term.step_value(torch.ones(3).diag(), None)) == 0
    assert float(term.step_value(torch.ones(2, 1), None)) == 0.5
"""
REDUCER = '''"""NAME: fewer rows for an image. `model.connector.reduce` of the recipe names it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lmmkit.api import Dims, ImageReducer, hookimpl


@dataclass(frozen=True, kw_only=True)
class CLASS(ImageReducer):
    """Gives each `run` neighbouring patches of a line of the image one row: their mean."""

    run: int = 2

    def check(self, dims: Dims) -> str:
        fits = self.run > 0 and dims.image.grid[1] % self.run == 0
        return "" if fits else f"run: {self.run}, which does not divide {dims.image.grid[1]}"

    def tokens(self, dims: Dims) -> int:
        return dims.image.tokens // self.run

    def patches(self, dims: Dims) -> list[list[int]]:
        return [[row * self.run + i for i in range(self.run)] for row in range(self.tokens(dims))]

    def reduce(
        self, features_INE: Tensor, connect: Callable[[Tensor], Tensor], module: nn.Module | None
    ) -> Tensor:
        return connect(features_INE.unflatten(1, (-1, self.run)).mean(2))


@hookimpl
def lmmkit_components():
    return {"NAME": CLASS}
'''
CONNECTOR = '''"""NAME: a connector. The recipe has `model.connector: {kind: none, reduce: NAME}`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from lmmkit.api import Dims, ImageReducer, hookimpl


@dataclass(frozen=True, kw_only=True)
class CLASS(ImageReducer):
    """Maps each square of `side` x `side` patches to one row of the decoder (a pixel shuffle, then an MLP)."""

    side: int = 2
    connects: ClassVar[bool] = True

    def check(self, dims: Dims) -> str:
        fits = self.side > 0 and not any(n % self.side for n in dims.image.grid)
        return "" if fits else f"side: {self.side}, which does not divide {dims.image.grid}"

    def tokens(self, dims: Dims) -> int:
        return dims.image.tokens // self.side**2

    def modules(self, dims: Dims) -> nn.Module:
        wide = dims.image.width * self.side**2
        return nn.Sequential(nn.Linear(wide, dims.width), nn.GELU(), nn.Linear(dims.width, dims.width))

    def reduce(
        self, features_INE: Tensor, connect: Callable[[Tensor], Tensor], module: nn.Module | None
    ) -> Tensor:
        assert module is not None, "`modules` builds it"
        return module(self.squares(features_INE))

    def squares(self, features_INE: Tensor) -> Tensor:
        n = round(features_INE.shape[1] ** 0.5) // self.side  # images are squares
        grid = features_INE.unflatten(1, (n, self.side, n, self.side))
        return grid.transpose(2, 3).flatten(3).flatten(1, 2)


@hookimpl
def lmmkit_components():
    return {"NAME": CLASS}
'''
CONNECTOR_TEST = """

def test_a_row_has_the_patches_of_a_square():
    features_INE = torch.arange(16.0)[None, :, None]
    squares = CLASS(name="NAME").squares(features_INE)[0].int().tolist()
    assert squares == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
"""
REDUCER_TEST = """

def test_a_row_is_the_mean_of_its_patches():
    features_INE = torch.arange(4.0)[None, :, None]
    assert CLASS(name="NAME").reduce(features_INE, lambda x: x, None).tolist() == [[[0.5], [2.5]]]
"""
