"""The frozen plan of one stage: its terms, views, needs and learned tokens."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from lmmkit import plugin_calls
from lmmkit.api.components import (
    AuxTask,
    ExtraView,
    ImageReducer,
    Loss,
    Reader,
    Term,
    TokenStrategy,
    TokenWeight,
    ViewMaker,
)
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import Need, reads_reference, selector, teacher_models_of, teachers_of
from lmmkit.recipe import Weight

START = "start"  # the reference that has the weights with which the stage begins


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Describes what one stage computes. The order of plugins matters only for inserts at the same position.

    `strategies` pairs each active token strategy with the views it inserts into (None: all).
    `weighers` weight the rows of the next-token loss. `off` names the instances that this stage leaves out, with the
    reason. `reference`: START or a model folder, if a need reads it.
    """

    stage: str
    weights: Mapping[str, Weight]
    terms: tuple[Term, ...]
    strategies: tuple[tuple[TokenStrategy, frozenset[str] | None], ...]
    needs: tuple[Need, ...]
    off: Mapping[str, str]
    digest: str
    extra_views: tuple[ExtraView, ...] = ()
    reducer: ImageReducer | None = None
    reference: str = ""
    weighers: tuple[TokenWeight, ...] = ()

    @property
    def teachers(self) -> tuple[str, ...]:
        """Returns the names of the teachers whose features active terms read."""
        return teachers_of(self.needs)

    @property
    def teacher_models(self) -> tuple[str, ...]:
        """Returns the names of the teachers whose logits active terms read."""
        return teacher_models_of(self.needs)

    @property
    def all_teachers(self) -> tuple[str, ...]:
        """Returns the names of both, each once."""
        return tuple(dict.fromkeys((*self.teachers, *self.teacher_models)))

    def without_reference(self) -> StagePlan:
        """Returns the plan without the terms that read the reference, for a model whose run has ended."""
        kept = [r for r in self.readers if not any(reads_reference(n) for n in plugin_calls.needs(r))]
        lost = {reader.name for reader in self.readers} - {reader.name for reader in kept}
        return replace(
            self._read_by(
                tuple(term for term in self.terms if term in kept),
                tuple(weigher for weigher in self.weighers if weigher in kept),
            ),
            reference="",
            weights={name: weight for name, weight in self.weights.items() if name not in lost},
            off={**self.off, **dict.fromkeys(lost, "its reference is not in the model folder")},
        )  # fmt: skip

    def without_weights(self, names: Collection[str]) -> StagePlan:
        """Returns the plan without what these instances weight, and without what only they read."""
        weighers = tuple(weigher for weigher in self.weighers if weigher.name not in names)
        if len(weighers) == len(self.weighers):
            return self
        strategies = tuple((s, views) for s, views in self.strategies if s.name not in names)
        return replace(self._read_by(self.terms, weighers), strategies=strategies)

    def _read_by(self, terms: tuple[Term, ...], weighers: tuple[TokenWeight, ...]) -> StagePlan:
        """Returns the plan with only these readers, their needs, and the extra views that they read."""
        readers = (*terms, *weighers)
        needs = tuple(dict.fromkeys(need for reader in readers for need in plugin_calls.needs(reader)))
        read = {selector(need).view for need in needs}
        return replace(
            self, terms=terms, weighers=weighers, needs=needs,
            extra_views=tuple(view for view in self.extra_views if view.name in read),
        )  # fmt: skip

    @property
    def tasks(self) -> tuple[AuxTask, ...]:
        """Returns the active auxiliary tasks, sorted by name."""
        return tuple(term for term in self.terms if isinstance(term, AuxTask))

    @property
    def makers(self) -> tuple[ViewMaker, ...]:
        """Returns all that makes further views: the tasks, then the extra views that active terms read."""
        return (*self.tasks, *self.extra_views)

    @property
    def readers(self) -> tuple[Reader, ...]:
        """Returns all that reads needs: the terms, then what weights rows of the next-token loss."""
        return (*self.terms, *self.weighers)

    @property
    def not_additive(self) -> tuple[str, ...]:
        """Returns the names of the terms with a weight whose value depends on how a step is cut into micro-batches."""
        trained = (term for term in self.terms if not self.weights[term.name].constant_zero)
        return tuple(term.name for term in trained if not term.additive)

    @property
    def labelling(self) -> tuple[Loss | TokenWeight, ...]:
        """Returns all that gives labels to samples: the active losses, then what weights rows."""
        return tuple(reader for reader in self.readers if isinstance(reader, Loss | TokenWeight))

    @property
    def per_weight(self) -> bool:
        """Returns whether the next-token loss is divided by the sum of the weights of its rows."""
        return self.weights["next_token"].per == "weight"

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
        made = (*self.readers, *self.extra_views, *(s for s, _ in self.strategies), self.reducer)
        return frozenset(component.name for component in made if component is not None)

    @property
    def inference_plugins(self) -> tuple[str, ...]:
        """Returns the names of the plugins that inference needs: the token strategies in every view (the others are
        at the end only, where generation has no tokens), and the image reducer."""
        strategies = tuple(s.name for s, views in self.strategies if views is None)
        return strategies if self.reducer is None else (*strategies, self.reducer.name)
