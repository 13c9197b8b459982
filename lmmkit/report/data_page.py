"""The page of a stage's samples: `lmmkit data show RECIPE --html FILE`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmmkit.api.sample import Native
from lmmkit.errors import UserError, did_you_mean
from lmmkit.errors.data import NO_RECORD, NO_STAGE, NOT_TRAINED
from lmmkit.plan.explain import stage_text
from lmmkit.plan.prepare import Prepared, prepare
from lmmkit.progress import counted, plural
from lmmkit.recipe import Recipe
from lmmkit.report.page import Page, byte_size, render
from lmmkit.report.span_text import visible
from lmmkit.report.trained_samples import (
    LABELS,
    SMALL,
    SampleReader,
    TrainedSample,
    first_places,
    source_places,
)

LIMIT = 6_000_000  # bytes of the page
SHRINK = 0.8
MEANINGS = {
    "bos": "the token that begins a sequence", "system": "the system prompt", "user": "a question",
    "header": "what announces an answer", "response": "an answer", "image": "rows of an image",
    "learned": "learned tokens of a plugin", "none": "text of no role",
}  # fmt: skip


def data_page(
    recipe: Recipe, *, source: str | None = None, stage: str | None = None, first: int = 0, count: int = 50,
    trust_files: bool = False, limit: int = LIMIT,
) -> Page:  # fmt: skip
    """Returns the page of samples as a stage trains on them.

    Args:
        recipe: a recipe as `read_recipe` returns it.
        source: show its records, in their order; None: the samples of the stage in the order of training.
        stage: the stage that trains on them; None: the first one, or the first with the source.
        first, count: which of them, from 0.
        trust_files: run plugins from local files.
        limit: bytes of the page.

    Raises:
        UserError: in the cases of `prepare`, for an unknown stage, a source that the stage does not train on, and a
            sample that does not exist.
    """
    stage = stage_of(recipe, source, stage)
    prepared = prepare(recipe, trust_files=trust_files, data=recipe.stages[stage].data)
    pipeline = prepared.pipeline(stage)
    total = pipeline.total if source is None else len(pipeline.sources[source])
    if not 0 <= first < total:
        raise UserError(NO_RECORD.at("--record", got=f"record {first}", last=total - 1))
    places = source_places(pipeline, source, first, count) if source else first_places(pipeline, first, count)
    reader = SampleReader(pipeline)
    asked = min(count, total - first)
    samples = [reader.read(place) for place in counted("samples", places, asked, "samples")]
    return _fitting(prepared, stage, samples, first, limit, source)


def stage_of(recipe: Recipe, source: str | None, stage: str | None) -> str:
    """Returns the stage that is shown. Raises `UserError` for an unknown one, and for a source that it lacks."""
    if stage is not None and stage not in recipe.stages:
        nearest = did_you_mean(stage, recipe.stages)
        raise UserError(NO_STAGE.at("--stage", got=f"`{stage}`", nearest=nearest))
    if source is None:
        return stage or next(iter(recipe.stages))
    trained = [name for name, each in recipe.stages.items() if source in each.data]
    if not trained or (stage is not None and stage not in trained):
        which = "no stage" if stage is None else f"stage {stage}"
        known = sorted({name for each in recipe.stages.values() for name in each.data})
        got = f"`{source}`, on which {which} is trained"
        raise UserError(NOT_TRAINED.at("SOURCE", got=got, known=", ".join(known)))
    return stage or trained[0]


def _fitting(
    prepared: Prepared, stage: str, samples: Sequence[TrainedSample], first: int, limit: int, source: str | None
) -> Page:  # fmt: skip
    """Returns the page with as many of the samples as its bytes allow."""
    most = len(samples)
    while True:
        further = plural(len(samples) - most, "further sample")
        left_out = f"{further} left out: the page has room for {limit / 1e6:g} MB."
        page = _page(prepared, stage, samples[:most], first, source, left_out if most < len(samples) else "")
        if most == 0 or byte_size([page.text]) <= limit:
            return page
        most = int(most * SHRINK)


def _page(
    prepared: Prepared, stage: str, samples: Sequence[TrainedSample], first: int, source: str | None, left_out: str
) -> Page:  # fmt: skip
    """Returns the page. `left_out`: what is not on it, as a sentence."""
    section, image = prepared.recipe.stages[stage], prepared.dims.image
    of = plural(len(samples), "record") + f" of {source}" if source else plural(len(samples), "sample")
    warnings = [left_out] if left_out else []
    if bad := sum(sample.problem is not None for sample in samples):
        warnings.append(f"{plural(bad, 'record')} cannot be trained on, each with its reason.")
    numbers = {uri: number for number, uri in enumerate(dict.fromkeys(_uris(samples)))}
    kinds = {span.kind for sample in samples for view in sample.views for span in view.spans}
    roles = [(kind, LABELS[kind], meaning) for kind, meaning in MEANINGS.items() if kind in kinds]
    reads = any(span.use == "read" for sample in samples for view in sample.views for span in view.spans)
    where = prepared.recipe.where(f"stages.{stage}")
    fits = [prepared.recipe.data[name].image_fit for name in section.data]
    text = render(
        "data", {"first": first}, title=f"Stage {stage}", head=f"What stage {stage} is trained on", first=first,
        kicker=f"{where} · {of}{'' if source else ', in the order of training'}", warnings=warnings,
        steps=prepared.steps(stage), step=section.batch.samples, context=prepared.recipe.model.text.context,
        too_long=section.batch.too_long, size=image.size, small=image.size <= SMALL,
        one_size=not any(isinstance(fit, Native) for fit in fits),
        roles=roles, reads=reads, samples=samples, numbers=numbers,
        visible=visible, plan=stage_text(prepared, prepared.plans[stage]),
    )  # fmt: skip
    return Page(text=text, warnings=warnings)


def _uris(samples: Sequence[TrainedSample]) -> Iterator[str]:
    """Yields the images of samples, in their order, with repeats."""
    for sample in samples:
        for view in sample.views:
            for span in view.spans:
                if span.image is not None:
                    yield span.image.whole
                    yield from (tile.uri for tile in span.image.tiles)
