"""Calls into token strategies: their embeddings, the names of their tokens, and where they insert them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from torch import Tensor, nn

from lmmkit.api.components import TokenStrategy
from lmmkit.api.layout import Insert, InsertAt
from lmmkit.api.sample import View
from lmmkit.errors import UserError
from lmmkit.errors.plan import INSERT
from lmmkit.plugin_calls.guard import calling, place_of, returned, shown


def tokens(name: str, module: nn.Module, width: int, owner: object = None) -> Tensor:
    """Returns the embeddings of learned tokens, [n, D]. `owner`: the strategy, if it is at hand."""
    with calling(name, "forward", owner or module):
        found = module()
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != width:
        raise returned(name, "forward", owner or module, shown(found), f"embeddings [n, {width}]")
    return found


def provides(strategy: TokenStrategy) -> tuple[str, ...]:
    """Returns the names of the tokens of a strategy."""
    found: Any = strategy.provides
    if not isinstance(found, tuple | list) or not all(isinstance(name, str) and name for name in found):
        raise returned(
            strategy.name, "provides", strategy, shown(found), 'a tuple of names, such as ("drt",)'
        )
    return tuple(found)


def edit(strategy: TokenStrategy, view: View) -> Sequence[Insert]:
    """Returns where a token strategy inserts into a view."""
    name = strategy.name
    with calling(name, "edit", strategy):
        found = strategy.edit(view)
    if not isinstance(found, list | tuple) or not all(isinstance(each, Insert) for each in found):
        raise returned(name, "edit", strategy, shown(found), "a list of Insert")
    places = get_args(InsertAt)
    for each in found:
        unknown = each.at not in places or each.token_name not in provides(strategy)
        unfit = (each.at == "after_token") != isinstance(each.token, str)
        if unknown or unfit or type(each.n) is not int or each.n < 1:
            where = f"{name}.edit, {place_of(strategy, 'edit')}"
            raise UserError(INSERT.at(where, got=f"{each}", positions=", ".join(places)))
    return found
