"""Checks of images with rows by their shape: the model has rows for them, and nothing else needs images of one size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lmmkit import plugin_calls
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import TeacherAt, VisionAt
from lmmkit.api.sample import AnyRes, ImageFit, Native
from lmmkit.data.fits.tiles import most_rows
from lmmkit.errors import Problem
from lmmkit.errors.plan import SETTING, TILES
from lmmkit.errors.recipe import CONFLICT
from lmmkit.model.connectors.kinds import CONNECTORS, connector_rows
from lmmkit.plan.stage_plan import StagePlan
from lmmkit.progress import plural
from lmmkit.recipe import ConnectorConfig, Recipe, Vision, VisionScratch, VisionTimm


def _fits(recipe: Recipe) -> dict[str, ImageFit]:
    """Returns how images are treated, by the key of the recipe."""
    fits: dict[str, ImageFit] = {"model.chat.image_fit": recipe.model.chat.image_fit}
    for name, source in recipe.data.items():
        fits[f"data.{name}.image_fit"] = source.image_fit
    return fits


def fits_read(recipe: Recipe, stage: str) -> list[ImageFit]:
    """Returns how the images are treated from which the views of a stage are made, in training, validation and the
    evaluation of its terms and tasks."""
    section, last = recipe.stages[stage], list(recipe.stages)[-1]
    names = [*section.data, *([section.validate.data] if section.validate else [])]
    for name, task in recipe.evaluate.tasks.items() if recipe.evaluate else ():
        if (task.kind or name) in ("terms", "restore") and (task.stage or last) == stage and task.data:
            names.append(task.data)
    return [recipe.data[name].image_fit for name in dict.fromkeys(names) if name in recipe.data]


def images_by_shape(recipe: Recipe, dims: Dims) -> list[Problem]:
    """Returns the problems of images with rows by their shape: a model without an encoder, an image reducer, and what
    only tiles, or only images that keep their shape, meet."""
    found = {key: fit for key, fit in _fits(recipe).items() if not isinstance(fit, str)}
    connector, problems = recipe.model.connector, []
    if not found:
        return []
    if connector is None:
        return [TILES.at(recipe.where(key), got="a model without an encoder") for key in found]
    tiled = {key: fit for key, fit in found.items() if isinstance(fit, AnyRes)}
    native = {key: fit for key, fit in found.items() if isinstance(fit, Native)}
    if got := mixing_connector(connector) if tiled else reducing_connector(connector):
        problems.append(TILES.at(recipe.where("model.connector"), got=got))
    return problems + _tiles(recipe, tiled, dims) + _native(recipe, connector, native, dims)


def reducing_connector(connector: ConnectorConfig) -> str:
    """Returns a connector in words if an image reducer makes the rows; else an empty text."""
    return "" if connector.reduce is None else f"connector {connector.kind} with `reduce: {connector.reduce}`"


def mixing_connector(connector: ConnectorConfig) -> str:
    """Returns a connector in words if its rows are no lines and columns of an image; else an empty text."""
    in_lines = CONNECTORS[connector.kind].fixed_patches
    return reducing_connector(connector) or ("" if in_lines else f"connector {connector.kind}")


def _tiles(recipe: Recipe, found: Mapping[str, AnyRes], dims: Dims) -> list[Problem]:
    """Returns the problems of images that are cut into tiles: sources without the learned newline row, which the chat
    format gives the model, and images that cannot fit into the context."""
    problems, chat = [], "model.chat.image_fit"
    if found and chat not in found:
        expected, got = "`{kind: anyres, ...}`, as in the data", str(recipe.model.chat.image_fit)
        fix = "Write the section of the data here too: the model needs a learned newline row."
        problems.append(CONFLICT.at(recipe.where(chat), got=got, expected=expected, fix=fix))
    for key, fit in found.items():
        rows, grid = max((most_rows(grid, dims.image.row_grid), grid) for grid in fit.used)
        got = f"{rows} rows of an image on {grid[0]} x {grid[1]} tiles"
        problems += _room(recipe, key, rows, got, "max_tiles")
    return problems


def _native(
    recipe: Recipe, connector: ConnectorConfig, found: Mapping[str, Native], dims: Dims
) -> list[Problem]:
    """Returns the problems of images that keep their shape: an encoder that takes one size only, grids that do not
    fit the connector, and images that cannot fit into the context."""
    vision, where, problems = recipe.model.vision, recipe.where("model.vision"), []
    if found and takes_one_size(vision):
        expected = "`args: {dynamic_img_size: true}`, for timm's encoders"
        got, fix = "a timm encoder that takes images of one size", "Add it to `args`."
        problems.append(CONFLICT.at(where, got=got, expected=expected, fix=fix))
    if found and (size := odd_head_size(vision)):
        problems.append(TILES.at(where, got=f"heads of {size} values, an odd number"))
    for key, fit in found.items():
        least = (fit.multiple, fit.multiple)
        if misfit := CONNECTORS[connector.kind].misfit(least, dims.width, **connector.settings):
            name, side, _ = misfit
            got = f"`multiple: {fit.multiple}` and connector {connector.kind} with `{name}: {side}`"
            expected, fix = f"a multiple of {side}", f"Write `multiple: {side}`."
            problems.append(CONFLICT.at(recipe.where(f"{key}.multiple"), got=got, expected=expected, fix=fix))
            continue
        rows = most_native_rows(fit, connector)
        got = f"{plural(rows, 'row')} of {plural(fit.max_patches, 'patch', 'patches')}"
        problems += _room(recipe, f"{key}.max_patches", rows, got, "max_patches")
    return problems


def most_native_rows(fit: Native, connector: ConnectorConfig) -> int:
    """Returns the rows of the largest image that keeps its shape."""
    squares = fit.max_patches // fit.multiple**2
    return connector_rows(connector, (fit.multiple, squares * fit.multiple))


def takes_one_size(vision: Vision | None) -> bool:
    """Returns whether an encoder takes images of one size only, as timm's do unless they are asked for others."""
    return isinstance(vision, VisionTimm) and not vision.args.get("dynamic_img_size")


def odd_head_size(vision: Vision | None) -> int:
    """Returns the size of an encoder's heads if it is odd, which attention over packed rows does not take; else 0."""
    size = vision.width // vision.heads if isinstance(vision, VisionScratch) else 0
    return size if size % 2 else 0


def _room(recipe: Recipe, key: str, rows: int, got: str, setting: str) -> list[Problem]:
    """Returns a problem if the largest image fills the context. `setting`: what makes it smaller."""
    context = recipe.model.text.context
    if rows < context:
        return []
    expected = f"fewer than the context, which is {context}"
    fix = f"Raise `model.text.context`, or lower `{setting}`."
    return [CONFLICT.at(recipe.where(key), got=got, expected=expected, fix=fix)]


def native_views(recipe: Recipe, plan: StagePlan, dims: Dims) -> list[Problem]:
    """Returns the problems of plugins that make views, in a stage with images that keep their shape: what they need of
    the grid of an image must hold of its smallest one, of which all are multiples."""
    fits, problems = fits_read(recipe, plan.stage), []
    for multiple in {fit.multiple for fit in fits if isinstance(fit, Native)}:
        least = replace(dims, image=replace(dims.image, grid=(multiple, multiple)))
        for maker in plan.makers:
            if found := plugin_calls.check(maker, least):
                where = recipe.where(f"plugins.{maker.name}.{found.partition(':')[0]}")
                problems.append(
                    SETTING.at(where, got=f"{found} (native images, with `multiple: {multiple}`)")
                )
    return problems


def feature_needs(recipe: Recipe, plan: StagePlan) -> list[Problem]:
    """Returns the problems of terms that read features of images, in a stage with images that have no common size."""
    fits = fits_read(recipe, plan.stage)
    if all(isinstance(fit, str) for fit in fits):
        return []
    where = recipe.where(f"stages.{plan.stage}.data")
    reading = [
        r.name
        for r in plan.readers
        if any(isinstance(n, VisionAt | TeacherAt) for n in plugin_calls.needs(r))
    ]
    found = [TILES.at(where, got=f"`{name}`, which reads features of images") for name in reading]
    return found + [TILES.at(where, got=f"the teacher `{name}`") for name in plan.all_teachers]
