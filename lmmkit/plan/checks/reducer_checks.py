"""Checks of the image reducer that `model.connector.reduce` names, on random features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lmmkit import plugin_calls
from lmmkit.api.components import ImageReducer
from lmmkit.api.model_info import Dims
from lmmkit.errors import Problem, Tried
from lmmkit.errors.plan import CONNECTS, NOT_A_REDUCER
from lmmkit.model.image_rows import ReducedRows
from lmmkit.plan.instances import Instances, reducer_of
from lmmkit.recipe import Recipe


def reducer(recipe: Recipe, instances: Instances, dims: Dims) -> list[Problem]:
    """Returns the problems of the image reducer: a plugin of another kind, and faults of its methods. It is tried
    on random features, without the connector."""
    name = recipe.model.connector.reduce if recipe.model.connector else None
    if name is None:
        return []
    found = reducer_of(recipe, instances)
    if found is None:
        return [NOT_A_REDUCER.at(recipe.where("model.connector.reduce"), got=f"`{name}`")]
    assert recipe.model.connector is not None, "it names the reducer"
    alone = recipe.model.connector.kind == "none"
    if alone is not found.connects:
        got = f"`{recipe.model.connector.kind}`, and `{name}` with `connects = {found.connects!r}`"
        return [CONNECTS.at(recipe.where("model.connector.kind"), got=got)]
    tried = Tried(lambda: _try_reducer(found, dims, alone))
    return [] if tried.error is None else list(tried.error.problems)


def _try_reducer(found: ImageReducer, dims: Dims, alone: bool) -> None:
    """Raises the faults of a reducer on random features. `alone`: without a connector."""
    rows = ReducedRows(found, plugin_calls.modules(found, dims), dims)
    features_IND = torch.randn(
        2, dims.image.tokens, dims.image.width, generator=torch.Generator().manual_seed(0)
    )

    def connect(x: Tensor) -> Tensor:
        return x if alone else F.linear(x, torch.ones(1, dims.image.width)).expand(*x.shape[:-1], dims.width)

    with torch.no_grad():
        rows.project(features_IND, connect)
