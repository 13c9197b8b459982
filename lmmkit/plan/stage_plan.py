"""The frozen plan of one stage: its terms, views, needs and learned tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lmmkit import plugin_calls
from lmmkit.api.components import AuxTask, Loss, Term, TokenStrategy
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import Need
from lmmkit.recipe import Weight


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Describes what one stage computes. The order of plugins matters only for inserts at the same position.

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
        """Returns the active auxiliary tasks, sorted by name."""
        return tuple(term for term in self.terms if isinstance(term, AuxTask))

    @property
    def losses(self) -> tuple[Loss, ...]:
        """Returns the active losses, which add no views, sorted by name."""
        return tuple(term for term in self.terms if isinstance(term, Loss))

    @property
    def text_terms(self) -> tuple[str, ...]:
        """Returns the names of the terms that are next-token losses on the text of some view."""
        return ("next_token", *(task.name for task in self.tasks if task.text_loss))

    def chances(self, dims: Dims) -> dict[str, float]:
        """Returns each term's average loss at chance level, for terms where it is known in advance.

        It is ln V per token for text, and `Term.chance` for other terms.
        """
        text = dict.fromkeys(self.text_terms, math.log(dims.vocab))
        other = {term.name: plugin_calls.chance(term, dims) for term in self.terms}
        return text | {name: chance for name, chance in other.items() if chance is not None}

    @property
    def active(self) -> frozenset[str]:
        """Returns the names of the active instances. Their modules may be trainable."""
        return frozenset(t.name for t in self.terms) | {s.name for s, _ in self.strategies}

    @property
    def inference_plugins(self) -> tuple[str, ...]:
        """Returns the names of the token strategies in the main view. Inference needs them."""
        return tuple(s.name for s, views in self.strategies if views is None or "main" in views)
