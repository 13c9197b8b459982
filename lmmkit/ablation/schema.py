"""The keys of a grid file, as frozen dataclasses like those of a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MinLen
from pydantic import BeforeValidator, Strict

from lmmkit.recipe import field_types as k
from lmmkit.recipe.field_types import Says, section

Equal = Literal["steps", "tokens", "time"]
"""What a comparison holds equal between a variant and the base."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


@section
class Variant:
    """Describes a variant: another recipe, changed keys, or one variant for each combination of values.

    `recipe`: instead of the base. `set`: keys and values, as with `--set`. `product`: keys with lists of values.
    """

    recipe: k.Text | None = None
    set: Annotated[Mapping[k.Text, Any], Says("a section of KEY: value")] = field(default_factory=dict)
    product: Annotated[
        Mapping[k.Text, Annotated[list[Any], MinLen(1), Says("a list of values")]],
        Says("a section of KEY: [values]"),
    ] = field(default_factory=dict)

    @property
    def combinations(self) -> int:
        """Returns how many variants it is."""
        return math.prod(map(len, self.product.values()))


@section
class Branch:
    """Repeats the stages after the stage `after` with `times` seeds, all from the same model."""

    after: k.Text
    times: Annotated[int, Strict(), Ge(2), Le(1000), Says("a whole number from 2 to 1000")]


@section
class Grid:
    """Describes a grid. `base`: a recipe. `set`: keys that are changed in the base and all variants. `root`: one data
    folder, or several. `interval`: over what the intervals of differences are taken. `measures`: figures of
    results.json by name; the first decides.
    """

    base: k.Text
    root: Annotated[
        tuple[k.Text, ...], BeforeValidator(_listed), MinLen(1), Says("a folder, or a list of folders")
    ]
    seeds: Annotated[tuple[k.Natural, ...], MinLen(1), Says("a list of whole numbers, 0 or more")]
    branch: Branch | None = None
    equal: Annotated[
        tuple[Equal, ...],
        BeforeValidator(_listed),
        MinLen(1),
        Says("steps, tokens or time, or a list of them"),
    ] = ("steps",)
    interval: Literal["seeds", "questions"] = "seeds"
    measures: Annotated[Mapping[k.Name, k.Text], MinLen(1), Says("a section of NAME: TASK/FIGURE")]
    set: Annotated[Mapping[k.Text, Any], Says("a section of KEY: value")] = field(default_factory=dict)
    variants: Annotated[Mapping[k.Name, Variant], MinLen(1), Says("a section of NAME: variant")]
