"""Prepares all that a run needs except weights: tokenizer, instances, plans, sources, pipelines."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from lmmkit import plugin_calls
from lmmkit.api.model_info import Dims
from lmmkit.data.chat_templates import require_fitting, vocabulary_in_use
from lmmkit.data.fits.rows import FixedRows, RowsOfGrid
from lmmkit.data.images import Cut, ImageReader
from lmmkit.data.length_grouping import GroupedSampler
from lmmkit.data.packing import Packer
from lmmkit.data.pipeline import Pipeline
from lmmkit.data.sampler import Sampler
from lmmkit.data.sources.bad_records import Policy
from lmmkit.data.sources.records import Records, missing_images, open_records, too_many
from lmmkit.data.text_tokenizers.choose import TextTokenizer, open_tokenizer
from lmmkit.data.views import Views
from lmmkit.errors import Problem, Tried, UserError, raise_all, raise_together
from lmmkit.errors.plan import CONNECTOR_FIT, NO_STEP, OTHERS, PLUGIN_SETTINGS
from lmmkit.model.connectors.kinds import CONNECTORS, connector_rows
from lmmkit.plan import shapes
from lmmkit.plan.compile_plan import chat_plan, compile_plan
from lmmkit.plan.instances import Instances, build_instances, reducer_of
from lmmkit.plan.pretrained import Pretrained, resolve_pretrained
from lmmkit.plan.stage_plan import StagePlan
from lmmkit.plan.teachers import TeacherFolder, resolve_teachers
from lmmkit.progress import plural
from lmmkit.recipe import BatchConfig, Recipe, TextScratch
from lmmkit.weights.end_ids import EndIds, read_end_ids


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Holds a resolved recipe and the objects built from it.

    `sources`: the opened sources, by name. `pretrained`: the folders from which parts take their initial
    weights; `recipe` contains the shapes of these parts. `end_ids`: as named by the tokenizer's folder.
    `trust_files`: whether plugins from local files may be run, those of a reference's folder too. `teachers`: the
    folders of the recipe's teachers, by name.
    """

    recipe: Recipe
    pretrained: tuple[Pretrained, ...]
    tokenizer: TextTokenizer
    instances: Instances
    dims: Dims
    plans: Mapping[str, StagePlan]
    sources: Mapping[str, Records]
    end_ids: EndIds
    trust_files: bool = False
    teachers: Mapping[str, TeacherFolder] = field(default_factory=dict)

    @property
    def image_rows(self) -> int:
        """Returns the number of rows that an image takes in the decoder; 0 in a text-only model."""
        connector, reducer = self.recipe.model.connector, reducer_of(self.recipe, self.instances)
        if reducer is not None:
            return plugin_calls.reducer_rows(reducer, self.dims)
        return connector_rows(connector, self.dims.image.grid) if connector else 0

    @property
    def rows_of_grid(self) -> RowsOfGrid:
        """Returns what gives the rows that the connector makes of an image with a grid (height, width) of its own."""
        connector = self.recipe.model.connector
        return functools.partial(connector_rows, connector) if connector else math.prod

    def reader(self, stage: str) -> ImageReader:
        """Returns a reader of a stage's images, with an empty cache."""
        cuts = dict.fromkeys(Cut.of(self.dims.teachers[name]) for name in self.plans[stage].all_teachers)
        others = tuple(cut for cut in cuts if cut != Cut.of(self.dims.image))
        return ImageReader(self.dims.image, self.recipe.speed.image_cache_mb, others)

    def views(self, stage: str) -> Views:
        """Returns the object that turns a stage's samples into views and layouts."""
        section, plan = self.recipe.stages[stage], self.plans[stage]
        return Views(
            tokenizer=self.tokenizer, rows_of=FixedRows(self.image_rows),
            context=self.recipe.model.text.context, too_long=section.batch.too_long,
            after_eos=self.recipe.model.chat.after_eos, seed=self.recipe.seed,
            tasks=plan.makers, edits=plan.strategies, needs=plan.needs, losses=plan.labelling, dims=self.dims,
            rows_of_grid=self.rows_of_grid,
        )  # fmt: skip

    def packer(self, stage: str) -> Packer:
        """Returns the object that packs a stage's layouts into batches."""
        plan, speed, sources = self.plans[stage], self.recipe.speed, tuple(self.recipe.stages[stage].data)
        return Packer(
            image=self.dims.image, text_terms=plan.text_terms, needs=plan.needs,
            terms=plan.terms, share=speed.share_prefix, sources=sources if len(sources) > 1 else (),
            per_weight=plan.per_weight,
            teachers={name: self.dims.teachers[name] for name in plan.all_teachers},
        )  # fmt: skip

    def pipeline(self, stage: str) -> Pipeline:
        """Returns the data pipeline of a stage. Raises `UserError` if the stage has no complete step."""
        section = self.recipe.stages[stage]
        sizes = {name: len(self.sources[name]) for name in section.data}
        order = Sampler(sizes, section.data, self.recipe.seed)
        self._require_others(stage, sizes)
        samples = section.batch.samples
        if section.length.steps is not None:
            total = section.length.steps * samples
        else:
            assert section.length.epochs is not None, "checked when the recipe was read"
            total = section.length.epochs * order.len_epoch
            total -= total % samples if section.batch.tail == "drop" else 0
        if total < 1:
            where = self.recipe.where(f"stages.{stage}.batch.samples")
            raise UserError(NO_STEP.at(where, got=f"{plural(order.len_epoch, 'record')} and `tail: drop`"))
        self._require_step_of(stage, samples, total)
        return Pipeline(
            sources={name: self.sources[name] for name in section.data},
            order=self._grouped(order, section.batch, total),
            views=self.views(stage), reader=self.reader(stage), packer=self.packer(stage), samples=samples,
            tokens=self.recipe.speed.tokens, total=total, image_rows=self.image_rows,
        )  # fmt: skip

    def _require_step_of(self, stage: str, samples: int, total: int) -> None:
        """Raises `UserError` for steps of one sample, if a plugin asks for other samples of the step."""
        asking = ", ".join(maker.name for maker in self.plans[stage].makers if maker.others == "step")
        least = smallest_step(samples, total)
        if asking and least < 2:
            where = self.recipe.where(f"stages.{stage}.batch.samples")
            step = "a step" if samples < 2 else "the last step"
            raise UserError(OTHERS.at(where, got=f"{step} of one sample, and views of {asking}"))

    def _require_others(self, stage: str, sizes: Mapping[str, int]) -> None:
        """Raises `UserError` for sources of one record, if a plugin asks for other samples of the source."""
        asking = [maker.name for maker in self.plans[stage].makers if maker.others == "source"]
        small = [name for name, size in sizes.items() if size < 2]
        where = self.recipe.where(f"stages.{stage}.data")
        got = f"a source of one record, and views of {', '.join(asking)}"
        raise_all(OTHERS.at(where, got=f"`{name}`, {got}") for name in small if asking)

    def _grouped(self, order: Sampler, batch: BatchConfig, total: int) -> Sampler | GroupedSampler:
        if batch.group == "none":
            return order
        words = {name: self.sources[name].words_N for name in order.weights}
        return GroupedSampler(
            order, words, samples=batch.samples, total=total, by_length=batch.group == "length"
        )

    def steps(self, stage: str) -> int:
        """Returns the number of optimizer steps in a stage."""
        pipeline = self.pipeline(stage)
        return math.ceil(pipeline.total / pipeline.samples)


def smallest_step(samples: int, total: int) -> int:
    """Returns the number of samples of the smallest step: of the last one, which may have fewer."""
    return total % samples or samples


def prepare(recipe: Recipe, *, trust_files: bool = False, data: Iterable[str] | None = None) -> Prepared:
    """Opens and checks all that can fail, before any costly work starts.

    Args:
        recipe: a recipe as `read_recipe` returns it.
        trust_files: run plugins from local files.
        data: names of the sources to open. Default: those of all stages and their validations.

    Raises:
        UserError: with the problems of tokenizer, plugins and data together, if they do not depend on
            each other.
    """
    wanted = read_in_training(recipe) if data is None else data
    return _prepare(
        recipe, sorted(wanted), trust_files,
        lambda instances, dims, tokenizer, teachers: compile_plan(recipe, instances, dims, tokenizer, teachers),
    )  # fmt: skip


def read_in_training(recipe: Recipe) -> set[str]:
    """Returns the names of the sources that all stages use, for training and for validation."""
    names = {name for stage in recipe.stages.values() for name in stage.data}
    for asked in (stage.validate for stage in recipe.stages.values() if stage.validate is not None):
        tasks = recipe.evaluate.tasks if recipe.evaluate is not None else {}
        of_tasks = {tasks[name].data for name in asked.tasks}
        names |= {asked.data} | {name for name in of_tasks if name is not None}
    return names


def prepare_bare(
    recipe: Recipe, *, inference_plugins: Iterable[str] = (), trust_files: bool = False, data: Iterable[str] = (),
    allow_missing_tokenizer: bool = False, pickled: bool = False,
) -> Prepared:  # fmt: skip
    """Prepares a recipe without its terms, for inference or for inspection of data.

    Args:
        recipe: a recipe as `read_recipe` returns it.
        inference_plugins: the token strategies to insert into every view. Else only the model's image reducer is
            opened.
        trust_files: run plugins from local files, if `inference_plugins` names any.
        data: names of the sources to open.
        allow_missing_tokenizer: accept a model without a tokenizer; any later use of it raises `UserError`.
        pickled: whether `.bin` files of folders may be read, with torch's weights-only reader.

    Raises:
        UserError: in the cases of `prepare`, and for `inference_plugins` without settings.
    """
    connector = recipe.model.connector
    reduce = (
        [connector.reduce] if connector and connector.reduce and connector.reduce in recipe.plugins else []
    )
    inference_plugins = list(dict.fromkeys([*inference_plugins, *reduce]))
    if missing := [name for name in inference_plugins if name not in recipe.plugins]:
        raise UserError(
            PLUGIN_SETTINGS.at(recipe.where("plugins"), got=f"no settings of {', '.join(missing)}")
        )
    kept = {name: recipe.plugins[name] for name in inference_plugins}
    recipe = replace(recipe, plugins=kept, teachers={}, output=replace(recipe.output, observers=()))
    return _prepare(
        recipe, sorted(data), trust_files,
        lambda instances, dims, *_: {stage: chat_plan(recipe, instances, stage) for stage in recipe.stages},
        allow_missing_tokenizer=allow_missing_tokenizer, pickled=pickled,
    )  # fmt: skip


def _prepare(
    recipe: Recipe, data: Iterable[str], trust_files: bool,
    plan: Callable[[Instances, Dims, TextTokenizer | None, Mapping[str, TeacherFolder]], Mapping[str, StagePlan]], *,
    allow_missing_tokenizer: bool = False, pickled: bool = False,
) -> Prepared:  # fmt: skip
    """Opens everything, compiles the plans with `plan`, and raises all problems together."""
    tokenizer = Tried(lambda: _open_tokenizer(recipe, allow_missing_tokenizer))
    end_ids = Tried(lambda: read_end_ids(recipe.path(recipe.model.tokenizer.from_)))
    resolved = Tried(lambda: resolve_pretrained(recipe, pickled=pickled))
    teachers = Tried(lambda: resolve_teachers(recipe))
    instances = Tried(lambda: build_instances(recipe, trust_files=trust_files))
    sources = Tried(lambda: open_sources(recipe, data))
    # Without the tokenizer, whose size it does not depend on, the plan still shows its own problems.
    opened = tokenizer.value if tokenizer.error is None else None
    dims = Tried(lambda: _dims(resolved.value[0], opened, teachers.value), resolved, teachers)
    connector = Tried(lambda: _require_fitting_connector(resolved.value[0], dims.value), resolved, dims)
    plans = Tried(
        lambda: plan(instances.value, dims.value, opened, teachers.value), instances, dims, connector
    )
    raise_together((tokenizer, end_ids, resolved, teachers, instances, sources, dims, connector, plans))
    return Prepared(
        recipe=resolved.value[0], pretrained=resolved.value[1], tokenizer=tokenizer.value, instances=instances.value,
        dims=dims.value, plans=plans.value, sources=sources.value, end_ids=end_ids.value,
        trust_files=trust_files, teachers=teachers.value,
    )  # fmt: skip


def _dims(recipe: Recipe, tokenizer: TextTokenizer | None, teachers: Mapping[str, TeacherFolder]) -> Dims:
    """Returns the model's sizes. The embedding of a folder may lack rows for added tokens that nothing uses:
    public tokenizers often have a padding token without one. If there is no tokenizer, the size of the
    vocabulary has no meaning."""
    if tokenizer is None:
        dims = shapes.dims(recipe, 1)
    else:
        assert isinstance(recipe.model.text, TextScratch), "`resolve_pretrained` replaces folders by shapes"
        rows, size = recipe.model.text.vocab or 0, tokenizer.size
        dims = shapes.dims(recipe, max(rows, vocabulary_in_use(tokenizer)) if 0 < rows < size else size)
    return replace(dims, teachers={name: teacher.image for name, teacher in teachers.items()})


def _require_fitting_connector(recipe: Recipe, dims: Dims) -> None:
    """Raises `UserError` if a setting of the connector does not fit the encoder's grid or the decoder's width."""
    asked = recipe.model.connector
    found = CONNECTORS[asked.kind].misfit(dims.image.grid, dims.width, **asked.settings) if asked else None
    if found is not None:
        name, got, expected = found
        raise UserError(
            CONNECTOR_FIT.at(recipe.where(f"model.connector.{name}"), got=got, fitting=expected, name=name)
        )


class NoTokenizer:
    """Replaces the tokenizer of a model that has none. Use of any method raises `problem`."""

    size = 0

    def __init__(self, problem: UserError) -> None:
        self.problem = problem

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self.problem


def _open_tokenizer(recipe: Recipe, allow_missing_tokenizer: bool) -> TextTokenizer:
    section = recipe.model.tokenizer
    path = recipe.path(section.from_)
    try:
        tokenizer = open_tokenizer(path, section.kind)
    except UserError as error:
        if allow_missing_tokenizer and path.is_dir():
            return cast(TextTokenizer, NoTokenizer(error))
        raise
    require_fitting(recipe.model.chat.template, tokenizer, recipe.where("model.chat.template"))
    return tokenizer


def open_sources(recipe: Recipe, names: Iterable[str]) -> dict[str, Records]:
    """Opens the named sources, checks every record, and checks that the image files exist, as far as each
    source's `bad_records` requires it."""
    problems: list[Problem] = []
    sources = {}
    for name in names:
        try:
            sources[name] = open_source(recipe, name)
            problems += too_many(sources[name], missing_images(sources[name]))
        except UserError as error:
            problems += error.problems
    raise_all(dict.fromkeys(problems))  # several sources may name one missing folder
    return sources


def open_source(recipe: Recipe, name: str) -> Records:
    """Opens one source and checks its records."""
    section = recipe.data[name]
    return open_records(
        name, records=recipe.path(section.records),
        images=None if section.images is None else recipe.path(section.images),
        template=section.template, image_fit=section.image_fit,
        bad_records=Policy(section.bad_records, section.bad_share), columns=section.mapped(),
        official=section.official,
        annotations=None if section.annotations is None else recipe.path(section.annotations),
    )  # fmt: skip
