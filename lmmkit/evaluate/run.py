"""The evaluation of a run: runs the tasks of its recipe and writes `results.json`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from lmmkit.api.sample import Sample
from lmmkit.data.images import ReadImage
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

ROUND = 8  # records that a rank reads between two exchanges with the others


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
        controls: replace the controls in the recipe.
        stage: the stage whose model answers, instead of the stage in each task; such results are not written.
        trust_files: run plugins from local files.
        dtype: of weights and computation.
        notify: called with a line of text as the evaluation proceeds.

    Returns:
        {task: {...}} for the tasks that were run.
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
        samples = readable(sources[data_of(task)], task.samples, chat_models[folder].reader, notify)
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
    """Returns the figures of one task. `training`: the samples for the majority baseline."""
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
    """Returns the sources in the last stage, for the majority baseline."""
    return set(list(recipe.stages.values())[-1].data)


def readable(
    records: Records, n: int | str, reader: ReadImage, notify: Callable[[str], None], *,
    share: tuple[int, int] = (0, 1), gather: Callable[[list], list[list]] = lambda found: [found],
    poll: Callable[[], None] = lambda: None,
) -> list[Sample]:  # fmt: skip
    """Returns the samples of the first `n` records with readable images, or of `all` such records.

    Reads every image once here, so that a bad image does not end the evaluation later.

    Args:
        records: the records to choose from.
        n: how many, or `all`.
        reader: reads an image.
        notify: called with a line of text for each record that is skipped.
        share: (rank, world): each rank reads its share; no rank keeps a record that one cannot read.
        gather: returns the values of all ranks, by rank.
        poll: called every few records, equally often on every rank; may raise to end the work.

    Raises:
        UserError: more unreadable records than the source's `bad_records` allows, or no readable one.
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


def _unreadable(records: Records, i: int, reader: ReadImage) -> list[Problem]:
    """Returns the problems of the images in record i."""
    sample, found = records[i], []
    for image in sample.images:
        try:
            reader(image, sample.image_fit)
        except UserError as error:
            found += [replace(p, where=f"{records.where(i)}, {p.where}") for p in error.problems]
    return found


def data_of(task: Task) -> str:
    """Returns the source that a task reads."""
    assert task.data is not None, "`task_problems` found it"
    return task.data


def _chosen(recipe: Recipe, only: Sequence[str]) -> dict[str, Task]:
    raise_all([*choice_problems(recipe, only), *task_problems(recipe, only)])
    assert recipe.evaluate is not None, "`choice_problems` found tasks in it"
    return {name: task for name, task in recipe.evaluate.tasks.items() if not only or name in only}
