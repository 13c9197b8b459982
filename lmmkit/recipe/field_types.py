"""The types of recipe values, each with the text that a problem prints as `expected`.

Every scalar is strict: `true` is not a number and "3" is not a number. An integer is accepted as a
number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, Strict, StringConstraints

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(cls: type[_T]) -> type[_T]:
    """Returns the class as a frozen keyword-only dataclass. pydantic accepts exactly its keys."""
    # arbitrary types: only for Recipe.places, which no file can set
    cls.__pydantic_config__ = ConfigDict(  # type: ignore[attr-defined]
        extra="forbid",
        alias_generator=lambda name: name.rstrip("_"),
        arbitrary_types_allowed=True,
    )
    return dataclass(frozen=True, kw_only=True)(cls)


@dataclass(frozen=True)
class Says:
    """Holds the text for a type of value: "got 'x'; expected {words}"."""

    words: str


Whole = Annotated[int, Strict(), Says("a whole number")]
Natural = Annotated[int, Strict(), Ge(0), Says("a whole number, 0 or more")]
Count = Annotated[int, Strict(), Ge(1), Says("a whole number, 1 or more")]
Two = Annotated[int, Strict(), Ge(2), Says("a whole number, 2 or more")]
# not Literal[1], which also accepts `true` and 1.0
One = Annotated[int, Strict(), Ge(1), Le(1), Says("1, the only format there is")]
# Upper bounds above any real model or machine: without them, building a wrong recipe would take hours.
Blocks = Annotated[int, Strict(), Ge(1), Le(256), Says("a whole number from 1 to 256")]
Size = Annotated[int, Strict(), Ge(1), Le(2**20), Says("a whole number from 1 to 1048576")]
Samples = Annotated[int, Strict(), Ge(1), Le(10**6), Says("a whole number from 1 to 1000000")]
Few = Annotated[int, Strict(), Ge(0), Le(1024), Says("a whole number from 0 to 1024")]
# a tile is an image of the encoder: more would be a typing error, or beyond any context
Tiles = Annotated[int, Strict(), Ge(1), Le(64), Says("a whole number from 1 to 64")]
TileGrid = Annotated[tuple[Tiles, Tiles], Says("two whole numbers from 1 to 64: lines and columns of tiles")]
CountOrAll = Count | Literal["all"]

Number = Annotated[float, Strict(), Says("a number")]
NotNegative = Annotated[float, Strict(), Ge(0), Says("a number, 0 or more")]
Positive = Annotated[float, Strict(), Gt(0), Says("a number above 0")]
Below1 = Annotated[float, Strict(), Ge(0), Lt(1), Says("a number from 0 to below 1")]
Share = Annotated[float, Strict(), Gt(0), Le(1), Says("a number above 0 and up to 1")]
Triple = Annotated[tuple[Number, Number, Number], Says("three numbers, one a colour")]
PositiveTriple = Annotated[tuple[Positive, Positive, Positive], Says("three numbers above 0, one a colour")]

Flag = Annotated[bool, Strict(), Says("true or false")]
Text = Annotated[str, Strict(), StringConstraints(min_length=1, max_length=4096), Says("a text")]
# names become folders, log keys and parts of dotted keys
Name = Annotated[
    str,
    Strict(),
    StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,63}$"),
    Says("a name of a-z, 0-9, _ and -, a letter first"),
]
Instance = Annotated[
    str,
    Strict(),
    StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$"),
    Says("a name of a-z, 0-9 and _, a letter first"),
]
Settings = Annotated[Mapping[str, Any], Says("a section of settings; {} where there are none")]
