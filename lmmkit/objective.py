"""The root module: maps a batch to the sum of each term. Head, cross entropy, learned tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lmmkit import plugin_calls
from lmmkit.api.batch import WEIGHT, Batch, HeadPairs, RowGather
from lmmkit.api.components import Reader, RowLoss, StepTerm, Term, TokenWeight
from lmmkit.api.ctx import EVALUATION, Ctx, Moment
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import (
    AttnMass,
    AttnTo,
    HiddenAt,
    HiddenMean,
    Layer,
    LogitsAt,
    LogProb,
    LogSumExp,
    Need,
    TeacherAt,
    VisionAt,
)
from lmmkit.model.connectors.connector import Connector
from lmmkit.model.cross_entropy import linear_cross_entropy, log_probs, row_losses
from lmmkit.model.reference import Reference
from lmmkit.model.step_terms import StepShare
from lmmkit.model.teacher import Teacher, computing
from lmmkit.model.teacher_model import TeacherModel, TeacherRows
from lmmkit.model.timm_vit import TimmViT
from lmmkit.model.vision import ViT
from lmmkit.model.vlm import LMM, ModelOutput

NO_SHARES: Mapping[str, StepShare] = MappingProxyType({})


class Outcome(NamedTuple):
    """Holds the sums over each term's counted items (float32 scalars), the inputs of each plugin term, and
    the next-token sums by source, as "loss/SOURCE". `bad_weights` has for each plugin that weights rows the number of
    its weights that may not be, from finite needs."""

    sums: dict[str, Tensor]
    ctxs: dict[str, Ctx]
    by_source: dict[str, Tensor]
    bad_weights: dict[str, Tensor]


class Objective(nn.Module):
    """Holds the model, the modules of the plugins, and the active terms of a stage.

    The modules stay here during the complete run under `plugins.<instance>`; a stage changes `terms`.
    """

    def __init__(
        self,
        lmm: LMM,
        plugins: nn.ModuleDict,
        *,
        compute: torch.dtype,
        dims: Dims | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.lmm, self.plugins, self.compute = lmm, plugins, compute
        self.dims, self.seed = dims, seed
        self.terms: tuple[Term, ...] = ()
        self.weighers: tuple[TokenWeight, ...] = ()
        self.references: tuple[Reference, ...] = ()  # at most one; in a tuple it is no part of the module
        self.teachers: Mapping[str, Teacher] = {}  # by name; in a mapping they are no parts of the module
        self.teacher_models: Mapping[str, TeacherModel] = {}  # those that are whole models, also by name
        # parameters that a plugin itself has frozen, by name: no stage trains them
        self.always_frozen = frozenset(n for n, p in plugins.named_parameters() if not p.requires_grad)

    def forward(
        self, batch: Batch, now: Moment = EVALUATION, shares: Mapping[str, StepShare] = NO_SHARES
    ) -> Outcome:
        """Runs one packed pass over a micro-batch; all terms are sums, without averages.

        `shares`: what the micro-batch adds to each term over the step, which is 0 without a share.
        """
        with self.computing(batch.id_T.device):
            teacher_rows = {
                name: model(batch, batch.teacher_pixels[name])
                for name, model in self.teacher_models.items()
                if name in batch.teacher_pixels
            }
            out, scored = self._states(batch)
            if batch.head is None:
                hidden_SD = out.at(batch.predict.row_Q)
                losses_S = linear_cross_entropy(hidden_SD, self.lmm.decoder.head.weight, batch.target_S)
            else:
                logp_P, own = self._scored(batch.head, out)
                scored |= own
                losses_S = -logp_P[batch.head.pair_S]
        if batch.weight_S is not None:
            losses_S = losses_S * batch.weight_S
        weighers = [each for each in self.weighers if plugin_calls.has_weigh(each)]
        given = {}
        if weighers and batch.count["next_token"]:
            ctxs = [self._ctx(weigher, batch, out, scored, now) for weigher in weighers]
            given = {w.name: (plugin_calls.weigh(w, ctx), ctx) for w, ctx in zip(weighers, ctxs, strict=True)}
            losses_S = losses_S * _weights([weight_N for weight_N, _ in given.values()], batch)
        by_term = losses_S.new_zeros(len(batch.text_terms)).index_add(0, batch.term_S, losses_S)
        sums = {name: sum_.clone() for name, sum_ in zip(batch.text_terms, by_term.unbind(), strict=True)}
        sums["next_token"] = sums["next_token"] + self._zero_graph_anchor(batch, out)
        ctxs = {term.name: self._ctx(term, batch, out, scored, now) for term in self.terms}
        for term in (term for term in self.terms if term.name not in sums):
            if isinstance(term, StepTerm) and term.name in shares:
                sums[term.name] = shares[term.name].sum(term, ctxs[term.name])
            elif batch.count[term.name] and not isinstance(term, StepTerm):
                sums[term.name] = self._value(term, ctxs[term.name], teacher_rows)
            else:
                sums[term.name] = losses_S.new_zeros(())
        bad_weights = {name: _bad_weights(*each) for name, each in given.items()}
        return Outcome(sums, ctxs, _by_source(losses_S.detach(), batch), bad_weights)

    def step_inputs(self, batch: Batch, now: Moment) -> dict[str, Ctx]:
        """Returns the inputs of the terms over a step, by name. Computes only what these read of a micro-batch."""
        terms = [term for term in self.terms if isinstance(term, StepTerm)]
        read = batch.reading({need for term in terms for need in plugin_calls.needs(term)})
        with self.computing(batch.id_T.device):
            out, scored = self._states(read)
            if read.head is not None:
                scored |= self._scored(read.head, out)[1]
        return {term.name: self._ctx(term, batch, out, scored, now) for term in terms}

    def _states(self, batch: Batch) -> tuple[ModelOutput, dict[Need, Tensor]]:
        """Returns the output of the decoder and the features of teachers, and the needs that the stage's reference
        gives."""
        encoded, scored = None, {}
        if batch.reference is not None:
            (reference,) = self.references
            encoded = self.lmm.encode(batch)
            scored = reference(batch, encoded)
        out = self.lmm(batch, self.tokens(batch), encoded)
        return out._replace(features={**out.features, **self._teacher_features(batch)}), scored

    @torch.no_grad()
    def metric_sums(self, outcome: Outcome, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns the totals and the chance totals of the metrics of a micro-batch, by "term/metric"."""
        totals, chances = {}, {}
        for term in (term for term in self.terms if batch.count[term.name]):
            for name, metric in plugin_calls.metrics(term, outcome.ctxs[term.name]).items():
                totals[f"{term.name}/{name}"] = metric.total.detach()
                chances[f"{term.name}/{name}"] = metric.chance
        return totals, chances

    def computing(self, device: torch.device) -> torch.autocast:
        """Returns the autocast context in which the model computes."""
        return computing(device, self.compute)

    def _teacher_features(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the features of each teacher that the batch has images for, behind their rows: [rows, width]."""
        lmm, found = self.lmm, {}
        encoder, connector = cast(ViT | TimmViT, lmm.vision), cast(Connector, lmm.connector)
        for name, teacher in self.teachers.items():
            if name not in batch.teacher_pixels:  # of a term that this pass does not compute
                continue
            pixels_ICXY = batch.teacher_pixels[name]
            if len(pixels_ICXY):
                features_IND = teacher(pixels_ICXY, encoder.image.grid)
                found[f"teachers.{name}"] = lmm.image_rows.row_features(features_IND, connector).flatten(0, 1)
            else:
                found[f"teachers.{name}"] = pixels_ICXY.new_empty(0, teacher.image.width)
        return found

    def tokens(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the learned tokens by scatter source."""
        return {each.source: self.learned_tokens(each.instance) for each in batch.scatters if each.instance}

    def learned_tokens(self, name: str) -> Tensor:
        """Returns the learned tokens of a plugin instance, [n, D]."""
        return plugin_calls.tokens(name, self.plugins[name], self.lmm.decoder.shape.width)

    def _scored(self, head: HeadPairs, out: ModelOutput) -> tuple[Tensor, dict[Need, Tensor]]:
        """Returns the log-probability of each pair, and the tensors of the needs that read them."""
        weight_VD = self.lmm.decoder.head.weight
        logp_P, lse_R = log_probs(out.at(head.row_R), weight_VD, head.place_P, head.target_P)
        return logp_P, {
            need: (lse_R if isinstance(need, LogSumExp) else logp_P)[item_Q]
            for need, item_Q in head.item_Q.items()
        }

    def _ctx(
        self, term: Reader, batch: Batch, out: ModelOutput, scored: Mapping[Need, Tensor], now: Moment
    ) -> Ctx:
        taps = {
            need: scored[need] if need in scored else tap(need, batch, out)
            for need in plugin_calls.needs(term)
        }
        return Ctx(term.name, batch, taps, self.module_of(term), *now, self.dims, self.seed)

    def _value(self, term: Term, ctx: Ctx, teacher_rows: Mapping[str, TeacherRows]) -> Tensor:
        if not isinstance(term, RowLoss):
            return plugin_calls.value(term, ctx)
        (need,) = plugin_calls.needs(term)
        assert isinstance(need, LogitsAt), "the only need of a `RowLoss`"
        batch, head_VD = ctx.batch, self.lmm.decoder.head.weight
        labels = batch.labels_of(term.name)
        rows = partial(plugin_calls.losses_of_rows, term, list(labels))
        with self.computing(ctx[need].device):
            teacher = [teacher_rows[need.teacher].logits(batch.gathers[need].row_Q)] if need.teacher else []
            beside = (ctx.targets(need), *teacher, *labels.values())
            return row_losses(ctx[need], head_VD, rows, *beside).sum()

    def module_of(self, term: Reader) -> nn.Module | None:
        """Returns the module of a term's instance, None if it has none."""
        return self.plugins[term.name] if term.name in self.plugins else None  # noqa: SIM401 (no `get`)

    def _zero_graph_anchor(self, batch: Batch, out: ModelOutput) -> Tensor | float:
        """Returns zero, connected in the graph to each trainable parameter that this batch may not use.

        So each parameter gets a gradient in every micro-batch and on every rank. LLaVA does this with a
        blank image in text-only samples. If a blank image was encoded, the encoder is connected through it.
        """
        idle, reached, sources = [self.plugins], [], {scatter.source for scatter in batch.scatters}
        if not sources & {"vision", "native"}:
            idle += [self.lmm.connector]
            if out.encoded.sized_IND is None:
                idle += [self.lmm.vision]
            elif out.encoded.sized_IND.requires_grad:
                reached = [out.encoded.sized_IND]
        learned = self.lmm.image_rows.learned(self.lmm.connector)
        reached += [x for source, x in learned.items() if source not in sources and x.requires_grad]
        reached += [p for part in idle for p in part.parameters() if p.requires_grad]
        return 0.0 * sum(x.sum(dtype=torch.float32) for x in reached) if reached else 0.0


def _weights(found: Sequence[Tensor], batch: Batch) -> Tensor:
    """Returns the weight of each row of the text terms: 1 for those of tasks. A weight that is negative or not
    finite is NaN, so that the step updates nothing."""
    weight_N = torch.stack([torch.where(_sound(w), w, torch.nan) for w in found]).prod(0)
    row_N = batch.term_S.argsort(stable=True)[: len(weight_N)]  # next_token is text term 0
    return weight_N.new_ones(len(batch.term_S)).index_copy(0, row_N, weight_N)


def _bad_weights(weight_N: Tensor, ctx: Ctx) -> Tensor:
    """Returns how many weights are negative or not finite; 0 if a need is not finite, so that they are not to blame."""
    bad = (~_sound(weight_N)).sum()
    for tap in ctx.taps.values():
        bad = bad * tap.isfinite().all()
    return bad


def _sound(weight_N: Tensor) -> Tensor:
    return (weight_N >= 0) & weight_N.isfinite()


def _by_source(losses_S: Tensor, batch: Batch) -> dict[str, Tensor]:
    if not batch.sources:
        return {}
    sums = losses_S.new_zeros(len(batch.sources) + 1).index_add(0, batch.source_S, losses_S)
    return {f"loss/{name}": value for name, value in zip(batch.sources, sums.unbind(), strict=False)}


def tap(need: Need, batch: Batch, out: ModelOutput) -> Tensor:
    """Returns the tensor for a need, in the order of its row gather."""
    gather = batch.gathers[need]
    match need:
        case HiddenAt(layer=layer):
            return _at_layer(layer, gather.row_Q, batch, out)
        case LogitsAt():
            return out.at(gather.row_Q)
        case HiddenMean(layer=layer):
            return _mean_by_view(_at_layer(layer, gather.row_Q, batch, out), gather)
        case VisionAt(stage=stage, detach=detach):
            x_QD = out.features[stage][gather.item_Q]
            return x_QD.detach() if detach else x_QD
        case TeacherAt(teacher=name):
            return out.features[f"teachers.{name}"][gather.item_Q]
        case AttnMass() if need in out.maps:
            return out.maps[need][:, 0]
        case AttnMass(layers=layers):
            mass_LR = out.mass_LR if layers == "all" else out.mass_LR[list(layers)]
            place_Q = torch.searchsorted(
                batch.attention.row_R.to(gather.row_Q.device, non_blocking=True), gather.row_Q
            )
            return mass_LR.mean(0)[place_Q]  # float32 or wider
        case AttnTo():
            return out.maps[need]
        case LogProb() | LogSumExp():
            raise AssertionError("the head gives them, with the losses")


def _at_layer(layer: Layer, row_Q: Tensor, batch: Batch, out: ModelOutput) -> Tensor:
    """Returns the states of these rows after a number of blocks, or after the final norm."""
    if layer == "final":
        return out.at(row_Q)
    return out.inner[layer][torch.searchsorted(batch.inner[layer], row_Q)]


def _mean_by_view(x_QD: Tensor, gather: RowGather) -> Tensor:
    """Returns the means over the rows of each view that has any, in view order: [views, D]."""
    sums_GD = x_QD.new_zeros(len(gather.size_G), x_QD.shape[1]).index_add(0, gather.group_Q, x_QD)
    return sums_GD / gather.size_G[:, None]


def total(sums: Mapping[str, Tensor], weights: Mapping[str, float], counts: Mapping[str, float]) -> Tensor:
    """Returns the contribution of one micro-batch to the objective: sum of weight * sum / global count."""
    parts = [weights[name] / (counts[name] or 1) * sums[name] for name in weights]
    return torch.stack(parts).sum()


def divisors(counts: Mapping[str, float]) -> dict[str, float]:
    """Returns the number by which each sum is divided: the sum of its weights if they are counted, else its items."""
    return {name: counts.get(WEIGHT + name, n) for name, n in counts.items() if not name.startswith(WEIGHT)}


def sum_by_name(mappings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the sum of the mappings, name by name."""
    out: dict[str, Any] = {}
    for mapping in mappings:
        for name, value in mapping.items():
            out[name] = out.get(name, 0) + value
    return out
