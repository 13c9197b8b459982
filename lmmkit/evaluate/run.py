"""The evaluation of a run: every task of its recipe, into `results.json`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from lmmkit.api.sample import Sample
from lmmkit.data.packing import ReadsImages
from lmmkit.data.sources.records import Records, too_many
from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.evaluate.checks import choice_problems, task_problems
from lmmkit.evaluate.exact_match import exact_match
from lmmkit.evaluate.restore import restore
from lmmkit.evaluate.terms import terms
from lmmkit.inference.chat_model import ChatModel, find_model_folder, load
from lmmkit.plan.prepare import open_sources
from lmmkit.recipe import Recipe, Task
from lmmkit.runs.files import read_json, write_json_atomic
from lmmkit.runs.run_folder import RunFolder

ROUND = 8  # rows that a rank reads between two looks at the others


def evaluate(
    run: RunFolder, recipe: Recipe, *, only: Sequence[str] = (), controls: Sequence[str] | None = None,
    stage: str | None = None, trust_files: bool = False, dtype: torch.dtype = torch.float32,
    notify: Callable[[str], None] = lambda text: None,
) -> dict:  # fmt: skip
    """Runs the recipe's tasks on the run's models and merges them into its `results.json`.

    Args:
        run: a run with at least one finished stage.
        recipe: the run's recipe, its root set.
        only: names of tasks; all by default.
        controls: in place of the recipe's.
        stage: whose model answers, in place of the tasks' own; such results are not written.
        trust_files: run plugins from local files.
        dtype: of weights and computation.
        say: told what is under way.

    Returns:
        {task: {...}} of what was run.
    """
    tasks = _chosen(recipe, only)
    assert recipe.evaluate is not None, "`_chosen` found tasks in it"
    controls = recipe.evaluate.controls if controls is None else controls
    sources = open_sources(recipe, sorted({data_of(task) for task in tasks.values()} | _training(recipe)))
    training = [sample for name in sorted(_training(recipe)) for sample in sources[name]]
    chat_models: dict[Path, ChatModel] = {}
    results = {}
    for name, task in tasks.items():
        folder = find_model_folder(run.path, stage or task.stage)
        if folder not in chat_models:
            chat_models[folder] = load(
                folder, dtype=dtype, trust_files=trust_files, plugins="all", root=recipe.root
            )
        began = time.perf_counter()
        samples = readable(sources[data_of(task)], task.samples, chat_models[folder].packer.reader, notify)
        notify(f"{name}: {len(samples)} samples of {task.data}")
        results[name] = run_task(
            name, task, chat_models[folder], samples, controls=controls, training=training
        )
        results[name]["seconds"] = time.perf_counter() - began
    if stage is not None:
        return results
    before = read_json(run.results) if run.results.is_file() else {}
    write_json_atomic(run.results, {**before, **results})
    return results


def run_task(
    name: str, task: Task, chat_model: ChatModel, samples: Sequence[Sample], *,
    controls: Sequence[str] = (), training: Sequence[Sample] = (),
) -> dict:  # fmt: skip
    """One task's figures. `training` is what the majority baseline may have seen."""
    match task.kind or name:
        case "exact_match":
            return exact_match(
                chat_model, samples, max_new_tokens=task.max_new_tokens, controls=controls, training=training
            )
        case "terms":
            return terms(chat_model, samples)
        case _:
            return restore(chat_model, samples, max_new_tokens=task.max_new_tokens)


def _training(recipe: Recipe) -> set[str]:
    """The last stage's sources: what the majority baseline may have seen."""
    return set(list(recipe.stages.values())[-1].data)


def readable(
    records: Records, n: int | str, reader: ReadsImages, notify: Callable[[str], None], *,
    share: tuple[int, int] = (0, 1), gather: Callable[[list], list[list]] = lambda found: [found],
    poll: Callable[[], None] = lambda: None,
) -> list[Sample]:  # fmt: skip
    """The first `n` rows whose pictures read, or `all` that do. Every picture is read once here, so that
    none ends the work in its middle.

    Args:
        records: rows to choose from.
        n: how many, or `all`.
        reader: of pictures.
        say: told of rows that are passed over.
        share: (rank, world): of several ranks each reads its share, and what one cannot read none keeps.
        gather: what every rank gave, by rank.
        poll: called every few rows, as often on every rank; may raise to end the work.

    Raises:
        UserError: more rows that do not read than the source's `bad_records` lets pass, or none that does.
    """
    rank, world = share
    kept: list[int] = []
    bad: dict[int, Problem] = {}
    for start in range(0, len(records), ROUND * world):
        if n != "all" and len(kept) >= int(n):
            break
        poll()
        rows = range(start, min(start + ROUND * world, len(records)))
        found = [[i, asdict(p[0])] for i in rows[rank::world] if (p := _unreadable(records, i, reader))]
        bad |= {i: Problem(**problem) for told in gather(found) for i, problem in told}
        kept += [i for i in rows if i not in bad]
    if n != "all" and len(kept) >= int(n):
        kept = kept[: int(n)]
        bad = {i: problem for i, problem in bad.items() if i < kept[-1]}
    told = [bad[i] for i in sorted(bad)]
    raise_all(too_many(records, told))
    if told and not kept:
        raise UserError(told)
    for problem in told:
        notify(f"passed over {problem.where}: {problem.got}")
    return [records[i] for i in kept]


def _unreadable(records: Records, i: int, reader: ReadsImages) -> list[Problem]:
    """What is wrong with the pictures of row i."""
    sample, found = records[i], []
    for image in sample.images:
        try:
            reader(image, sample.image_fit)
        except UserError as error:
            found += [replace(p, where=f"{records.where(i)}, {p.where}") for p in error.problems]
    return found


def data_of(task: Task) -> str:
    """The source a task reads."""
    assert task.data is not None, "`task_problems` found it"
    return task.data


def _chosen(recipe: Recipe, only: Sequence[str]) -> dict[str, Task]:
    raise_all([*choice_problems(recipe, only), *task_problems(recipe, only)])
    assert recipe.evaluate is not None, "`choice_problems` found tasks in it"
    return {name: task for name, task in recipe.evaluate.tasks.items() if not only or name in only}
