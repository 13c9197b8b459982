"""The frozen plan of one stage: its terms, views, needs and learned tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lmmkit.api.components import AuxTask, Term, TokenStrategy
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import Need
from lmmkit.recipe import Weight


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What one stage computes. Order of plugins never matters but among inserts at one place.

    `strategies` pairs each active token strategy with the views it inserts into (None: all).
    `off` names the instances that this stage leaves out, with the reason.
    """

    stage: str
    weights: Mapping[str, Weight]
    terms: tuple[Term, ...]
    strategies: tuple[tuple[TokenStrategy, frozenset[str] | None], ...]
    needs: tuple[Need, ...]
    off: Mapping[str, str]
    digest: str

    @property
    def tasks(self) -> tuple[AuxTask, ...]:
        """Active auxiliary tasks, by name."""
        return tuple(term for term in self.terms if isinstance(term, AuxTask))

    @property
    def text_terms(self) -> tuple[str, ...]:
        """Terms that are next-token losses on some view's text."""
        return ("next_token", *(task.name for task in self.tasks if task.text_loss))

    def chances(self, dims: Dims) -> dict[str, float]:
        """What each term's average would be at chance, where that is known beforehand: ln V a token
        for text, what the term says otherwise."""
        text = dict.fromkeys(self.text_terms, math.log(dims.vocab))
        said = {term.name: term.chance(dims) for term in self.terms}
        return text | {name: chance for name, chance in said.items() if chance is not None}

    @property
    def active(self) -> frozenset[str]:
        """Instances that take part: their modules may learn."""
        return frozenset(t.name for t in self.terms) | {s.name for s, _ in self.strategies}

    @property
    def inference_plugins(self) -> tuple[str, ...]:
        """Token strategies that stand in the main view, so that inference needs them."""
        return tuple(s.name for s, views in self.strategies if views is None or "main" in views)
