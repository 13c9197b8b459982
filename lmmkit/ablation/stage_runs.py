"""Divides the runs of a grid into stages, each with a key: the hash of all that decides its result.

Stages with equal keys are trained once. A stage starts from the model folder of the one before, as it does inside one
run, so the bits are those of a run of all stages (tests/ablation/test_stage_runs.py).
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from lmmkit.ablation.arms import Arm
from lmmkit.ablation.planned_runs import GridRun, StageRun
from lmmkit.evaluate.answers.schema import data_sha
from lmmkit.evaluate.questions.questions_task import item_of
from lmmkit.plan.prepare import Prepared, prepare, read_in_training
from lmmkit.recipe import Evaluate, Length, Recipe, Stage, Task, section_mapping, to_mapping
from lmmkit.weights.weights_hash import weights_hash

DIGITS = 12  # of a key
APART = 1_000_000  # between the seeds of branches
_Json = dict[str, Any]


class ArmOnData:
    """Holds an arm with the data of one root, opened and checked, and what its keys are made of."""

    def __init__(self, arm: Arm, root: Path, *, trust_files: bool = False):
        self.arm, self.recipe = arm, replace(arm.recipe, root=str(root.resolve()))
        asked = self.recipe.evaluate.tasks.values() if self.recipe.evaluate is not None else ()
        sources = read_in_training(self.recipe) | {task.data for task in asked if task.data is not None}
        self.prepared: Prepared = prepare(self.recipe, trust_files=trust_files, data=sources)
        self.identity = {name: records.identity() for name, records in self.prepared.sources.items()}
        self.steps = {stage: self.prepared.steps(stage) for stage in self.recipe.stages}
        self._files = [
            _files_hash(self.recipe.path(self.recipe.model.tokenizer.from_)),
            *(f"{weights_hash(each.folder)} {each.parts}" for each in self.prepared.pretrained),
        ]

    def active(self, stage: str) -> list[str]:
        """Returns the plugins that a stage uses, in the order of the recipe."""
        return [name for name in self.recipe.plugins if name in self.prepared.plans[stage].active]

    def stage_runs(
        self, seed: int, steps: Mapping[str, int], *, branch: int = 0, after: str | None = None
    ) -> tuple[StageRun, ...]:
        """Returns the stages of a run, each of `steps`. Those after the stage `after` have the seed of the branch."""
        found: list[StageRun] = []
        for stage in self.recipe.stages:
            own_start = self.recipe.stages[stage].start is not None
            before = None if own_start or not found else found[-1]
            found.append(self._stage_run(stage, seed, steps, before))
            if stage == after:
                seed += branch * APART
        return tuple(found)

    def _stage_run(
        self, stage: str, seed: int, steps: Mapping[str, int], before: StageRun | None
    ) -> StageRun:
        recipe = self._cut(stage, seed, steps)
        section = recipe.stages[stage]
        plain = to_mapping(recipe)
        own = plain["stages"][stage]
        learned = {name: self.identity[name] for name in sorted(section.data)}
        plan = self.prepared.plans[stage]
        work: _Json = {
            "name": stage, "stage": {**own, "start": None, "length": None}, "plan": plan.digest,
            **{key: plain[key] for key in ("model", "numerics", "speed", "parallel")},
            "sources": {name: plain["data"][name] for name in section.data},
            "plugins": {
                name: [dict(recipe.plugins[name]), self._source_hash(name)] for name in self.active(stage)
            },
            "validation": plain.get("evaluate") if section.validate is not None else None,
        }  # fmt: skip
        result: _Json = {
            **work, "seed": seed, "steps": recipe.stages[stage].length.steps, "data": learned, "files": self._files,
            "before": before.key if before is not None else None,
            "start": weights_hash(recipe.path(section.start)) if section.start is not None else None,
        }  # fmt: skip
        return StageRun(
            key=_hash(result), shape=_hash(work), stage=stage, steps=steps[stage], recipe=recipe, before=before,
            data=learned,
        )  # fmt: skip

    def _cut(self, last: str, seed: int, steps: Mapping[str, int]) -> Recipe:
        """Returns the recipe up to a stage, with the plugins, teachers, sources and tasks that it needs until then. The
        last stage keeps all tasks."""
        names = list(self.recipe.stages)
        names = names[: names.index(last) + 1]
        stages = {name: _canonical(self.recipe.stages[name], steps[name]) for name in names}
        used = {plugin for name in names for plugin in self.active(name)}
        plugins = {name: settings for name, settings in self.recipe.plugins.items() if name in used}
        read = {teacher for name in names for teacher in self.prepared.plans[name].all_teachers}
        teachers = {name: teacher for name, teacher in self.recipe.teachers.items() if name in read}
        recipe = replace(self.recipe, seed=seed, stages=stages, plugins=plugins, teachers=teachers)
        if last == list(self.recipe.stages)[-1]:
            return recipe
        recipe = replace(recipe, evaluate=_of_validation(recipe))
        return replace(recipe, data={name: recipe.data[name] for name in sorted(read_in_training(recipe))})

    def questions(self) -> dict[str, str]:
        """Returns a hash of each evaluation task, with its data and the controls."""
        evaluate = self.recipe.evaluate
        tasks = evaluate.tasks if evaluate is not None else {}
        controls = list(evaluate.controls) if evaluate is not None else []
        return {
            name: _hash([section_mapping(task), controls, self.identity.get(task.data or "")])
            for name, task in tasks.items()
        }

    def asked(self) -> list[str]:
        """Returns the names of the tasks that ask the questions of a source."""
        tasks = self.recipe.evaluate.tasks if self.recipe.evaluate is not None else {}
        return [
            name
            for name, task in tasks.items()
            if (task.kind or name) == "questions" and task.data is not None
        ]

    def asks_like(self, other: ArmOnData, task: str) -> bool:
        """Returns whether a task of both asks the same questions and scores them alike."""
        here, there = (each._section(task) for each in (self, other))
        same = replace(here, max_new_tokens=None, stage=None) == replace(
            there, max_new_tokens=None, stage=None
        )
        if same and self.identity[here.data or ""] == other.identity[there.data or ""]:
            return True
        return self.asked_in_words(task) == other.asked_in_words(task)

    def asked_in_words(self, task: str) -> str:
        """Returns how many questions a task asks, their hash, and the rule that scores them."""
        section = self._section(task)
        records = self.prepared.sources[section.data or ""]
        first = islice(records, None if section.samples == "all" else section.samples)
        items = [item_of(sample) for sample in first]
        return f"{len(items):,} questions with the hash {data_sha(items)[:DIGITS]}, by the rule `{section.match}`"

    def _section(self, task: str) -> Task:
        assert self.recipe.evaluate is not None, "it has the task"
        return self.recipe.evaluate.tasks[task]

    def _source_hash(self, name: str) -> str:
        """Returns a hash of the file that defines a plugin: its version says less."""
        file = inspect.getsourcefile(type(self.prepared.instances.components[name]))
        return _files_hash(Path(file)) if file is not None else ""


def grid_runs(
    on_data: Sequence[ArmOnData], seeds: Iterable[int], *, equal: str, steps: Mapping[str, Mapping[str, int]],
    branches: int = 1, after: str | None = None,
) -> list[GridRun]:  # fmt: skip
    """Returns the runs of arms on one root or several. `steps`: of each stage of an arm."""
    return [
        GridRun(
            arm=each.arm.name, equal=equal, seed=seed, root=each.recipe.root, branch=branch,
            stages=each.stage_runs(seed, steps[each.arm.name], branch=branch, after=after),
            questions=each.questions(),
        )
        for seed in seeds
        for each in on_data
        for branch in range(branches)
    ]  # fmt: skip


def _canonical(stage: Stage, steps: int) -> Stage:
    """Returns a stage without terms that it leaves out, and with its length in steps."""
    losses = {
        name: weight for name, weight in stage.losses.items() if not weight.constant_zero or weight.watch
    }
    return replace(stage, losses=losses, length=Length(steps=steps))


def _of_validation(recipe: Recipe) -> Evaluate | None:
    """Returns the tasks that validations ask, or None."""
    asked = {task for stage in recipe.stages.values() if stage.validate for task in stage.validate.tasks}
    if not asked or recipe.evaluate is None:
        return None
    return replace(
        recipe.evaluate, tasks={name: t for name, t in recipe.evaluate.tasks.items() if name in asked}
    )


def _files_hash(path: Path) -> str:
    """Returns a hash of a file, or of a folder's files about tokens, by name."""
    files = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.is_file() and _of_tokens(p))
    sha = hashlib.sha256()
    for file in files:
        sha.update(f"{file.name if path.is_dir() else ''} ".encode() + file.read_bytes())
    return sha.hexdigest()


def _of_tokens(path: Path) -> bool:
    return "token" in path.name or path.suffix in (".model", ".tiktoken")


def _hash(value: Any) -> str:
    text = json.dumps(_given(value), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _given(value: Any) -> Any:
    """Returns plain data without the settings that are None, so that a setting that a later lmmkit adds changes no key
    where it is not given."""
    if isinstance(value, Mapping):
        return {key: _given(item) for key, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list | tuple) else value
