"""Checks of other models that compute the packed batches of a stage: its reference, and teachers whose logits it reads.

They are model folders. Tokenizer, images and learned tokens have to be those of the trained model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from lmmkit.api.sample import AnyRes, Native
from lmmkit.errors import Problem
from lmmkit.errors.plan import REFERENCE, TEACHER_MODEL
from lmmkit.plan import from_model
from lmmkit.plan.checks.image_checks import fits_read, odd_head_size, reducing_connector, takes_one_size
from lmmkit.plan.prepare import Prepared, prepare_bare
from lmmkit.plan.stage_plan import START
from lmmkit.weights import model_folder

# keys of a teacher that is read for its features
_OF_ENCODERS = ("image_size", "feature_layer", "mean", "std", "resample")


def reference_problems(prepared: Prepared) -> list[Problem]:
    """Returns the problems of the folders that stages name as their reference."""
    problems, recipe = [], prepared.recipe
    for stage, plan in prepared.plans.items():
        if plan.reference not in ("", START):
            where = recipe.where(f"stages.{stage}.reference")
            problems += folder_problems(prepared, stage, recipe.path(plan.reference), where)
    return problems


def folder_problems(prepared: Prepared, stage: str, folder: Path, where: str) -> list[Problem]:
    """Returns the problems of a model folder that is to compute the packed batches of a stage."""
    return [REFERENCE.at(where, got=got, stage=stage) for got in _misfits(prepared, stage, folder)]


def _misfits(prepared: Prepared, stage: str, folder: Path) -> list[str]:
    """Returns what in a folder does not fit the packed batches of a stage."""
    if not (folder / "config.json").is_file():
        return [f"no model in {folder}"]
    there = _opened(folder, prepared.trust_files)
    found = _other_tokenizer(prepared, there, folder)
    if (there.dims.image, there.image_rows) != (prepared.dims.image, prepared.image_rows):
        found.append(f"{folder}, a model that reads images of another size or grid")
    fits, model = fits_read(prepared.recipe, stage), there.recipe.model
    if any(isinstance(fit, AnyRes) for fit in fits) and not isinstance(model.chat.image_fit, AnyRes):
        found.append(f"{folder}, a model without a newline row, for images that are cut into tiles")
    multiples = [fit.multiple for fit in fits if isinstance(fit, Native)]
    if multiples:
        parts = [*_parts_for_one_size(there), *_other_rows(prepared, there, multiples)]
        found += [f"{folder}, {part}, for images that keep their shape" for part in parts]
    if prepared.plans[stage].strategies:
        names = ", ".join(strategy.name for strategy, _ in prepared.plans[stage].strategies)
        found.append(f"{folder}, and learned tokens ({names}), which only `start` has")
    elif own := _token_plugins(folder, there):
        found.append(
            f"{folder}, a model with learned tokens ({', '.join(own)}), which this stage does not have"
        )
    return found


def _parts_for_one_size(there: Prepared) -> Iterator[str]:
    """Yields what in a model, in words, cannot read images that keep their shape."""
    model = there.recipe.model
    if takes_one_size(model.vision):
        yield "a timm encoder that takes images of one size"
    if size := odd_head_size(model.vision):
        yield f"an encoder with heads of {size} values, an odd number"
    if model.connector and (got := reducing_connector(model.connector)):
        yield got


def _other_rows(prepared: Prepared, there: Prepared, multiples: Iterable[int]) -> Iterator[str]:
    """Yields the connector of a model if it makes other rows of images that keep their shape. A square and an image
    three times as wide tell the connectors apart."""
    connector, grids = there.recipe.model.connector, [(n, m * n) for n in multiples for m in (1, 3)]
    if connector and any(there.rows_of_grid(grid) != prepared.rows_of_grid(grid) for grid in grids):
        yield f"connector {connector.kind}, which makes other rows"


def _other_tokenizer(prepared: Prepared, there: Prepared, folder: Path) -> list[str]:
    same = there.tokenizer.files() == prepared.tokenizer.files()
    return [] if same else [f"{folder}, a model with another tokenizer"]


def teacher_model_problems(prepared: Prepared) -> list[Problem]:
    """Returns the problems of the teachers whose logits stages read: each reads the rows of the trained model."""
    problems = [
        TEACHER_MODEL.at(prepared.recipe.where(f"teachers.{name}"), got=got)
        for stage, plan in prepared.plans.items() for name in plan.teacher_models
        for got in _teacher_misfits(prepared, stage, name)
    ]  # fmt: skip
    return list(dict.fromkeys(problems))


def _teacher_misfits(prepared: Prepared, stage: str, name: str) -> list[str]:
    section = prepared.teachers[name].section
    folder = prepared.recipe.path(section.from_)
    there = _opened(folder, prepared.trust_files)
    found = _other_tokenizer(prepared, there, folder)
    if not found and there.dims.vocab != prepared.dims.vocab:
        found.append(f"{folder}, a head of {there.dims.vocab} rows, and one of {prepared.dims.vocab}")
    if there.image_rows != prepared.image_rows:
        found.append(f"{folder}, {there.image_rows} rows for an image, and {prepared.image_rows}")
    given = [key for key in _OF_ENCODERS if getattr(section, key) is not None]
    found += [f"`{key}`, and a model that reads images in its own way" for key in given]
    if prepared.plans[stage].strategies:
        names = ", ".join(strategy.name for strategy, _ in prepared.plans[stage].strategies)
        found.append(f"{folder}, and learned tokens of stage `{stage}` ({names}), which it does not have")
    if own := _token_plugins(folder, there):
        found.append(f"{folder}, a model with learned tokens ({', '.join(own)}), which no row has")
    return found


def _token_plugins(folder: Path, there: Prepared) -> list[str]:
    """Returns the plugins whose learned tokens are in every sequence of a folder's model."""
    config = model_folder.config_of(folder) if model_folder.is_ours(folder) else {}
    reducer = there.instances.components  # nothing else: it is opened without its learned tokens
    return [name for name in config.get("inference_plugins", ()) if name not in reducer]


def _opened(folder: Path, trust_files: bool) -> Prepared:
    """Returns what a model folder describes, without its weights."""
    if not model_folder.is_ours(folder):
        return prepare_bare(from_model.recipe_of(folder)[0])
    recipe = from_model.recipe_of_ours(folder, model_folder.config_of(folder), None)
    return prepare_bare(recipe, trust_files=trust_files)
