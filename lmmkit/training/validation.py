"""Validation inside a stage: held-out losses, tasks, and the best weights so far.

It does not change training: the same run without it has the same bits. Each rank takes a share of the
held-out samples for the losses. Every rank runs all samples of the tasks, because answers differ in length.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from typing import Any

from lmmkit.api.sample import Sample
from lmmkit.data.micro_batch.laid_out import SizedSample
from lmmkit.data.sources.other_samples import SourceSamples
from lmmkit.data.views import dropped_text
from lmmkit.errors import Problem, did_you_mean
from lmmkit.errors.training import BEST, OTHER_STAGE, STAGE_NAME
from lmmkit.evaluate.kinds import tasks_of
from lmmkit.evaluate.run import readable
from lmmkit.evaluate.task import EvalTask
from lmmkit.evaluate.terms import averages, step_blocks, term_sums
from lmmkit.inference.chat_model import ChatModel
from lmmkit.objective import Objective, sum_by_name
from lmmkit.plan.prepare import Prepared
from lmmkit.progress import plural
from lmmkit.recipe import Validate
from lmmkit.training.checkpoint.rng import eval_no_grad
from lmmkit.training.distributed.fsdp import unsharded
from lmmkit.training.run_context import RunContext
from lmmkit.training.save_models import gathered, save_model
from lmmkit.training.stage_data import StageData
from lmmkit.training.triggers import Position


@dataclass
class Validator:
    """Validates a stage.

    `blocks` has this rank's micro-batches of the `samples` held-out samples, some empty so that all ranks have
    equally many. `done` is the step of the last completed validation, `best` the best value so far of the
    figure that selects the best weights.
    """

    context: RunContext
    data: StageData
    chat_model: ChatModel
    done: int = 0
    best: float | None = None
    blocks: Sequence[Sequence[Sequence[SizedSample]]] = ()
    samples: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    tasks: Mapping[str, tuple[EvalTask, Sequence[Sample]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, context: RunContext, data: StageData, objective: Objective, state: Mapping[str, Any] | None
    ) -> Validator:
        """Returns the validator of a stage, with the `state` from a checkpoint, if any.

        Without a `validate` section it does nothing. It reads no samples yet; `read` does.
        """
        chat_model = ChatModel.of(context.prepared, objective, data.stage, context.device, poll=context.poll)
        chat_model = replace(chat_model, packer=data.on_all_ranks(chat_model.packer))
        return cls(context, data, chat_model, **(state or {}))

    def read(self) -> None:
        """Reads and lays out the held-out samples, once, a share on each rank.

        Raises `UserError` for a sample that does not fit, and for more unreadable records than their source
        allows; `Interrupted` at a stop.
        """
        section = self.data.validation
        if section is None:
            return
        ranks, prepared = self.context.ranks, self.context.prepared

        def first(n: int | str, source: str) -> list[Sample]:
            return readable(
                prepared.sources[source], n, self.chat_model.reader, ranks.log_once,
                share=(ranks.rank, ranks.world), gather=ranks.gather, poll=self.context.poll,
            )  # fmt: skip

        samples = first(section.samples, section.data)
        own = samples[ranks.rank :: ranks.world]
        dropped: Counter[str] = Counter()
        blocks = step_blocks(
            self.chat_model, own, dropped, SourceSamples.among(samples), ranks.rank, ranks.world
        )
        self.dropped = sum_by_name(ranks.gather(dict(dropped)))
        counts = ranks.gather(list(map(len, blocks)))
        most = [max(each) for each in zip_longest(*counts, fillvalue=0)]
        blocks += [[] for _ in range(len(most) - len(blocks))]
        self.blocks = [
            [*block, *([] for _ in range(n - len(block)))] for block, n in zip(blocks, most, strict=True)
        ]
        self.samples = len(samples)
        tasks = _tasks(prepared, section)
        self.tasks = {
            name: (task, first(section.samples, section.data) if (section := task.section).data else [])
            for name, task in tasks.items()
        }

    @property
    def every(self) -> int:
        """Returns the steps between two validations; 0: never."""
        section = self.data.validation
        return section.every if section is not None else 0

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint: the step of the last validation, and the best value."""
        return {"done": self.done, "best": self.best}

    def __call__(self, at: Position, notify: Callable[[str], None]) -> dict[str, Any]:
        """Validates, and returns the record for metrics.jsonl. Writes the weights if they are the best.

        Raises `Interrupted` at a stop; the validation then does not count as done.
        """
        section = self.data.validation
        assert section is not None
        began = time.perf_counter()
        cost = f": {dropped_text(self.dropped)}" if self.dropped else ""
        notify(f"step {at.step}: validating on {plural(self.samples, 'sample')} of {section.data}{cost}")
        with (
            unsharded(self.chat_model.objective),
            eval_no_grad(self.chat_model.objective, self.chat_model.device),
        ):
            figures = self._losses(at) | self._figures()
        if section.best is not None:
            self._keep(section.best, at, figures)
        of_tasks = self._selecting(at.stage)
        shown = "  ".join(
            f"{name} {value:.4f}"
            for name, value in figures.items()
            if name.count("/") < 3 or name in of_tasks
        )
        seconds = time.perf_counter() - began
        notify(f"step {at.step}: {shown}  ({seconds:.1f} s)")
        self.done = at.step
        return {"step": at.step, "stage": at.stage, **figures, "val/seconds": seconds}

    def _losses(self, at: Position) -> dict[str, float]:
        ranks = self.context.ranks
        gather = partial(ranks.gather_rows, device=self.chat_model.device)
        shares = ranks.gather(term_sums(self.chat_model, self.blocks, gather, ranks.world))
        found = averages(self.chat_model, [sum_by_name(each) for each in zip(*shares, strict=True)])
        plan, progress = self.context.prepared.plans[at.stage], at.stage_step / self.data.steps
        weights = {name: weight.at(progress) for name, weight in plan.weights.items()}
        loss = sum(weights[name] * figure.value for name, figure in found.items() if name in weights)
        terms = {f"val/terms/{name}": figure.value for name, figure in found.items()}
        return ({"val/loss": float(loss)} if any(map(weights.get, found)) else {}) | terms

    def _figures(self) -> dict[str, float]:
        return {
            f"val/tasks/{name}/{key}": figure.value
            for name, (task, samples) in self.tasks.items()
            for key, figure in task.run(self.chat_model, samples).items()
        }

    def _selecting(self, stage: str) -> set[str]:
        """Returns the figures of the tasks that can select the best weights, which the terminal shows."""
        tasks = {name: task for name, (task, _) in self.tasks.items()}
        return {key for key, _ in _known(self.context.prepared, stage, tasks).values()}

    def _keep(self, best: str, at: Position, figures: Mapping[str, float]) -> None:
        """Writes the weights if the figure that `best` names is better than before."""
        tasks = {name: task for name, (task, _) in self.tasks.items()}
        key, sign = _known(self.context.prepared, at.stage, tasks)[best]
        value = figures.get(key)
        if value is None or (self.best is not None and sign * value <= sign * self.best):
            return
        measured = {"best": {"metric": key, "value": value}}
        full, run = gathered(self.context, self.chat_model.objective, at.stage), self.context.run
        if full is not None:
            save_model(run.best(at.stage), full, self.context.prepared, at.stage, at.step, measured)
        self.context.ranks.barrier()
        self.best = value


def validate_problems(prepared: Prepared) -> list[Problem]:
    """Returns what is wrong in the recipe's `validate` sections, and in the files that their tasks read."""
    recipe, found = prepared.recipe, []
    for stage, section in recipe.stages.items():
        if (asked := section.validate) is None:
            continue
        at = f"stages.{stage}.validate"
        tasks = _tasks(prepared, asked)
        for name, task in tasks.items():
            if task.section.stage not in (None, stage):
                got = f"`{name}`, a task of stage `{task.section.stage}`"
                found.append(OTHER_STAGE.at(recipe.where(f"{at}.tasks"), got=got, stage=stage))
            if not task.problems(recipe):
                found += task.input_problems()
        figures = _known(prepared, stage, tasks)
        if asked.best is not None and asked.best not in figures:
            suggestion = did_you_mean(asked.best, figures)
            found.append(BEST.at(recipe.where(f"{at}.best"), got=f"`{asked.best}`", suggestion=suggestion))
        if asked.best is not None and f"{stage}-best" in recipe.stages:
            where, got = recipe.where(f"stages.{stage}-best"), f"the folder of the best weights of `{stage}`"
            found.append(STAGE_NAME.at(where, got=got))
    return found


def _tasks(prepared: Prepared, asked: Validate) -> dict[str, EvalTask]:
    return tasks_of(prepared.recipe, asked.tasks) if asked.tasks else {}


def _known(prepared: Prepared, stage: str, tasks: Mapping[str, EvalTask]) -> dict[str, tuple[str, int]]:
    """Returns, by the names that `best` may have, the key of the figure and 1 if higher is better, else -1."""
    plan = prepared.plans[stage]
    known = {term: (f"val/terms/{term}", -1) for term in plan.weights} | {"loss": ("val/loss", -1)}
    for name, task in tasks.items():
        for figure, better in task.figures(plan).items():
            known[f"{name}/{figure}"] = (f"val/tasks/{name}/{figure}", 1 if better == "higher" else -1)
    return known
