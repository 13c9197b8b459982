"""Measures what each plugin of a stage costs: steps with all plugins, and with each one left out."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lmmkit import build, plugin_calls
from lmmkit.api.batch import Step
from lmmkit.api.components import TokenStrategy
from lmmkit.api.needs import selectors
from lmmkit.errors import UserError
from lmmkit.optimizers import build_optimizer
from lmmkit.plan.compile_plan import compile_plan
from lmmkit.plan.prepare import Prepared
from lmmkit.progress import counted
from lmmkit.recipe import Weight
from lmmkit.training.distributed.process_group import ALONE
from lmmkit.training.monitoring.out_of_memory import naming_memory_keys
from lmmkit.training.reference import set_reference, set_teachers
from lmmkit.training.step import run_step

MOST_STEPS = 4  # different steps of the data; the rounds repeat them


@dataclass(frozen=True, kw_only=True)
class PluginCost:
    """Describes what one plugin costs a stage.

    `ratio`: the median over the rounds of the time with all plugins divided by the time without this one; `low` and
    `high` are the quartiles. `bytes` and `rows`: what it adds to a micro-batch and to a step. `off_with`: the plugins
    that are left out with it. `why_not`: the reason if the stage cannot run without it; then there are no figures.
    """

    name: str
    parameters: int
    off_with: tuple[str, ...] = ()
    why_not: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    bytes: int | None = None
    rows: float | None = None


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Holds the figures of a step with all plugins, and the cost of each: the median seconds, the most bytes of a
    micro-batch (`SavedBytes`; on CUDA the peak above weights and optimizer of the step), and the rows of a step."""

    stage: str
    device: str
    rounds: int
    seconds: float
    bytes: int
    rows: float
    plugins: tuple[PluginCost, ...]


def plugin_costs(prepared: Prepared, stage: str, rounds: int, device: torch.device) -> StageCost:
    """Measures a stage with all plugins and without each, on copies of the model with its initial weights.

    The copies take turns within a round, each with the same samples, so that the load of the machine affects all.
    """
    whole = Copy(prepared, stage, device)
    others: dict[str, Copy] = {}
    why_not: dict[str, str] = {}
    active = sorted(whole.active)
    for name in counted("leaving out plugins", active):
        try:
            others[name] = Copy(without(prepared, stage, name), stage, device)
        except UserError as error:
            why_not[name] = f"{error.problems[0].got} [{error.problems[0].code}]"
    copies = [whole, *others.values()]
    for copy in counted("measuring memory", copies, unit="copies"):
        copy.run(copy.steps[0])
        copy.bytes = copy.measured_bytes()
    turns = [(number, copy) for number in range(rounds) for copy in copies[:: 1 if number % 2 else -1]]
    for number, copy in counted("timing steps", turns, unit="steps"):
        copy.timed(number)

    def cost(name: str) -> PluginCost:
        module = whole.objective.plugins[name] if name in whole.objective.plugins else nn.Identity()
        parameters = sum(p.numel() for p in module.parameters())
        if name in why_not:
            return PluginCost(name=name, parameters=parameters, why_not=why_not[name])
        other = others[name]
        ratios = [a / b for a, b in zip(whole.seconds, other.seconds, strict=True)]
        low, ratio, high = quartiles(ratios)
        return PluginCost(
            name=name, parameters=parameters, off_with=tuple(sorted(whole.active - other.active - {name})),
            ratio=ratio, low=low, high=high, bytes=whole.bytes - other.bytes, rows=whole.rows - other.rows,
        )  # fmt: skip

    return StageCost(
        stage=stage, device=device.type, rounds=rounds, seconds=statistics.median(whole.seconds), bytes=whole.bytes,
        rows=whole.rows, plugins=tuple(cost(name) for name in active),
    )  # fmt: skip


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Returns the first quartile, the median and the third quartile."""
    low, middle, high = statistics.quantiles(values, method="inclusive") if len(values) > 1 else values * 3
    return low, middle, high


class Copy:
    """Holds a model that is set to a stage, its optimizer and its steps, and what was measured of them."""

    def __init__(self, prepared: Prepared, stage: str, device: torch.device):
        recipe, plan = prepared.recipe, prepared.plans[stage]
        self.recipe, self.section, self.device, self.where = recipe, recipe.stages[stage], device, stage
        self.active = plan.active
        self.weights = {name: weight.at(1.0) for name, weight in plan.weights.items()}
        pipeline = prepared.pipeline(stage)
        self.steps = [pipeline.step(i) for i in range(min(MOST_STEPS, prepared.steps(stage)))]
        self.rows = sum(len(batch) for step in self.steps for batch in step) / len(self.steps)
        self.objective = build.build_objective(
            recipe, prepared.instances.components, prepared.dims, device, pretrained=prepared.pretrained,
            narrow=build.frozen_narrow(recipe),
        )  # fmt: skip
        trainable = build.set_stage(self.objective, plan, self.section, seed=recipe.seed)
        set_reference(prepared, stage, self.objective, ALONE, device)
        set_teachers(prepared, stage, self.objective, ALONE, device)
        self.optimizer = build_optimizer(self.objective, self.section, trainable)
        self.objective.train()
        build.set_layers(self.objective, recipe.speed)
        self.seconds: list[float] = []
        self.bytes = 0

    def run(self, step: Step) -> None:
        """Runs one optimizer step."""
        clip = self.section.optim.clip
        with naming_memory_keys(f"stage {self.where}", step, self.recipe, self.device, alone=True):
            run_step(
                self.objective, self.optimizer, step, self.weights, clip=None if clip == "none" else clip,
                device=self.device, metrics=False,
            )  # fmt: skip

    def timed(self, number: int) -> None:
        """Runs a step and keeps its time."""
        step = self.steps[number % len(self.steps)]
        self._wait()
        start = time.perf_counter()
        self.run(step)
        self._wait()
        self.seconds.append(time.perf_counter() - start)

    def measured_bytes(self) -> int:
        """Returns the most bytes that a micro-batch of the steps needs beside the weights and the optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type != "cuda":
            return max(self._saved_bytes((batch,)) for step in self.steps for batch in step)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        for step in self.steps:
            self.run(step)
        return torch.cuda.max_memory_allocated(self.device) - before

    def _saved_bytes(self, step: Step) -> int:
        saved = SavedBytes([*self.objective.parameters(), *self.objective.buffers()])
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda kept: kept.tensor):
            self.run(step)
        return saved.most

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class SavedBytes:
    """Counts the bytes that are saved for the backward pass, each storage once; `most` is their maximum.

    Those of `known` tensors, the weights, are not counted, nor is what recomputed blocks need again.
    """

    def __init__(self, known: Iterable[Tensor]):
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._uses = Counter[int]()
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> Saved:
        """Returns a tensor that is saved in a form that counts until the graph drops it."""
        return Saved(tensor, self)

    def add(self, tensor: Tensor, uses: int) -> None:
        """Adds `uses`, 1 or -1, of the storage of a tensor."""
        storage = tensor.untyped_storage()
        if (place := storage.data_ptr()) in self._known:
            return
        before = self._uses[place]
        self._uses[place] += uses
        self.now += storage.nbytes() * (bool(self._uses[place]) - bool(before))
        self.most = max(self.most, self.now)


class Saved:
    """Holds a saved tensor."""

    def __init__(self, tensor: Tensor, count: SavedBytes):
        self.tensor, self._count = tensor, count
        count.add(tensor, 1)

    def __del__(self) -> None:
        self._count.add(self.tensor, -1)


def without(prepared: Prepared, stage: str, name: str) -> Prepared:
    """Returns a prepared recipe whose `stage` leaves a plugin out, with all terms that read what it makes.

    Raises `UserError` if the recipe cannot run without it.
    """
    recipe, off = prepared.recipe, readers(prepared, stage, name)
    section, connector = recipe.stages[stage], recipe.model.connector
    losses = {term: Weight(weight=0.0) if term in off else weight for term, weight in section.losses.items()}
    tokens = tuple(each for each in section.tokens if each not in off)
    if connector is not None and connector.reduce == name:
        recipe = replace(recipe, model=replace(recipe.model, connector=replace(connector, reduce=None)))
    stages = {**recipe.stages, stage: replace(section, losses=losses, tokens=tokens)}
    recipe = replace(recipe, stages=stages)
    plans = compile_plan(recipe, prepared.instances, prepared.dims, prepared.tokenizer)
    plans = {**plans, stage: plans[stage].without_weights(off)}
    return replace(prepared, recipe=recipe, plans=plans)


def readers(prepared: Prepared, stage: str, name: str) -> set[str]:
    """Returns a plugin, the terms that read its views or tokens, and those that read views of these."""
    components, off = prepared.instances.components, {name}
    while True:
        made = [components[each] for each in off]
        tokens = {
            token for each in made if isinstance(each, TokenStrategy) for token in plugin_calls.provides(each)
        }
        more = set()
        for term in prepared.plans[stage].readers:
            selects = [each for need in plugin_calls.needs(term) for each in selectors(need)]
            if any(select.view in off or select.token_name in tokens for select in selects):
                more.add(term.name)
        if more <= off:
            return off
        off |= more
