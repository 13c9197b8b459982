"""The plan as text: `plan.txt`, and the output of `lmmkit plugins explain` and `lmmkit plugins trace`."""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Iterable
from itertools import islice

import numpy as np
from pydantic import ValidationError

from lmmkit import plugin_calls
from lmmkit.api.components import AuxTask, Component, Reader, StepTerm, TokenStrategy, ViewMaker
from lmmkit.api.layout import Layout, Span
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
    Select,
    TeacherAt,
    VisionAt,
    selector,
)
from lmmkit.api.sample import ImageFit, Label, Native
from lmmkit.data.fits.tiles import most_rows
from lmmkit.data.image_markers import marked
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.data.views import dropped_text
from lmmkit.plan.checks.image_checks import fits_read, most_native_rows
from lmmkit.plan.instances import build_component, default_of, setting_types
from lmmkit.plan.prepare import Prepared
from lmmkit.plan.shapes import why_sizes_apart
from lmmkit.plan.stage_plan import StagePlan
from lmmkit.progress import plural
from lmmkit.recipe import CUT, Weight
from lmmkit.registry import FoundComponent, setting_fields


def plan_text(prepared: Prepared) -> str:
    """Returns the text of every stage's plan."""
    return "\n\n".join(stage_text(prepared, plan) for plan in prepared.plans.values()) + "\n"


def stage_text(prepared: Prepared, plan: StagePlan) -> str:
    """Returns the text of one stage's plan: terms, views, tokens, needs, and inactive instances."""
    lines = [f"plan {plan.digest}  stage {plan.stage}  {plural(prepared.steps(plan.stage), 'step')}"]
    chances = plan.chances(prepared.dims)
    over_step = {term.name for term in plan.terms if isinstance(term, StepTerm)}
    for name, weight in sorted(plan.weights.items()):
        chance = chances.get(name)
        beside = "" if chance is None else f"  chance {chance:.4g}"
        how = "  over the step, in two passes" if name in over_step else ""
        how += "  the mean over micro-batches" if name in plan.not_additive else ""
        lines.append(f"  term {name}  weight {weight_text(weight)}{beside}{how}")
    if plan.not_additive:
        names = ", ".join(plan.not_additive)
        lines.append(f"  mathematics, because of {names}: {', '.join(CUT)}, the number of ranks")
    for weigher in plan.weighers:
        rows = ["the rows of next_token"] * plugin_calls.has_weigh(weigher)
        answers = ["characters of its answers"] * plugin_calls.has_spans(weigher)
        lines.append(f"  weights {weigher.name}  of {' and of '.join([*rows, *answers])}")
    if plan.per_weight:
        lines.append("  next_token is divided by the sum of the weights")
    for task in plan.makers:
        text = "  trains on its text" if isinstance(task, AuxTask) and task.text_loss else ""
        more = "" if task.others == "none" else f"  from other samples of its {task.others} too"
        lines.append(f"  view {task.name}{text}{more}")
    for strategy, views in plan.strategies:
        where = "every view" if views is None else "views " + ", ".join(sorted(views))
        lines.append(f"  tokens {strategy.name} ({', '.join(strategy.provides)}) in {where}")
    if plan.reducer is not None:
        rows = f"{plural(prepared.image_rows, 'row')} from {prepared.dims.image.tokens} tokens"
        lines.append(f"  image {rows} by {plan.reducer.name}")
    elif prepared.image_rows != prepared.dims.image.tokens:
        assert prepared.recipe.model.connector is not None, "it makes the rows"
        rows = f"{plural(prepared.image_rows, 'row')} from {prepared.dims.image.tokens} tokens"
        lines.append(f"  image {rows} by the connector, {prepared.recipe.model.connector.kind}")
    for name in prepared.recipe.stages[plan.stage].data:
        lines += _rows_text(name, prepared.recipe.data[name].image_fit, prepared)
    if any(isinstance(fit, Native) for fit in fits_read(prepared.recipe, plan.stage)):
        why = why_sizes_apart(prepared.recipe.model.vision)
        lines += [f"  encoder  a pass for each size of images: {why}"] if why else []
    for need in plan.needs:
        askers = [reader.name for reader in plan.readers if need in plugin_calls.needs(reader)]
        lines.append(f"  need {need_text(need)}  for {', '.join(askers)}")
    if plan.reference:
        lines.append(f"  reference {plan.reference}")
    lines += [f"  teacher {_teacher_text(prepared, name)}" for name in plan.teachers]
    whole = [(name, prepared.teachers[name].section.from_) for name in plan.teacher_models]
    lines += [f"  teacher {name}: {folder}, a whole model" for name, folder in whole]
    unread = [name for name in prepared.teachers if name not in plan.all_teachers]
    lines += [f"  off teacher {name}: no active term reads it" for name in unread]
    lines += [f"  off {name}: {reason}" for name, reason in sorted(plan.off.items())]
    inference_plugins = ", ".join(plan.inference_plugins) or "no plugin"
    lines.append(f"  inference needs {inference_plugins}")
    return "\n".join(lines)


def _rows_text(name: str, fit: ImageFit, prepared: Prepared) -> list[str]:
    """Returns a line about a source's images that have rows by their shape; none for images of one size."""
    if isinstance(fit, str):
        return []
    if isinstance(fit, Native):
        assert prepared.recipe.model.connector is not None, "the plan has refused a model without images"
        rows = most_native_rows(fit, prepared.recipe.model.connector)
        text = f"{fit}, at most {plural(rows, 'row')}"
    else:
        tiles = max(lines * columns for lines, columns in fit.used)
        rows = max(most_rows(each, prepared.dims.image.row_grid) for each in fit.used)
        text = f"{fit}: an overview and at most {tiles} tiles, at most {rows} rows"
    return [f"  images of {name}  {text}; each counts as {prepared.image_rows} where ranks share a step"]


def _teacher_text(prepared: Prepared, name: str) -> str:
    folder = prepared.teachers[name]
    grid, size = folder.image.grid, folder.image.size
    own = prepared.dims.image.grid
    fitted = "" if grid == own else f", fitted to {own[0]} x {own[1]}"
    return f"{name}: {folder.section.from_}  {grid[0]} x {grid[1]} patches of {size} px images{fitted}"


def weight_text(weight: Weight) -> str:
    """Returns a weight as text: '1', '0 (watched)' or '0 to 0.1 over 0.5'."""
    shown = (
        f"{weight.weight:g}"
        if weight.weight is not None
        else f"{weight.from_:g} to {weight.to:g} over {weight.over or 1:g}"
    )
    return f"{shown} (watched)" if weight.watch else shown


def need_text(need: Need) -> str:
    """Returns a need as one line of text."""
    match need:
        case LogProb(model=model):
            return f"log-probability, by the {model}, of {select_text(selector(need))}"
        case LogSumExp():
            return f"log-sum-exp of the logits before {select_text(selector(need))}"
        case LogitsAt(teacher=teacher):
            also = f" and those of teacher {teacher}" if teacher else ""
            return f"logits{also}, in chunks, before {select_text(selector(need))}"
        case HiddenAt(at=select, layer=layer):
            return f"hidden state{_layer_text(layer)} at {select_text(select)}"
        case HiddenMean(over=select, layer=layer):
            return f"mean hidden state{_layer_text(layer)} over {select_text(select)}"
        case VisionAt(at=select, stage=stage):
            return f"{'encoder features' if stage == 'encoder' else 'projected features'} at {select_text(select)}"
        case TeacherAt(teacher=teacher, at=select):
            return f"features of teacher {teacher} at {select_text(select)}"
        case AttnMass(q=q, k=k, layers=layers):
            return f"attention mass of {select_text(q)} on {select_text(k)}, layers {layers}"
        case AttnTo(q=q, k=k, layers=layers, heads=heads):
            return f"attention of {select_text(q)} to {select_text(k)}, layers {layers}, heads {heads}"


def _layer_text(layer: Layer) -> str:
    return "" if layer == "final" else f" after {layer} block{'s' * (layer != 1)}"


def select_text(select: Select) -> str:
    """Returns a selector as one phrase."""
    names = [f.name for f in dataclasses.fields(select) if f.name not in ("view", "view_role", "shift")]
    names = [name for name in names if name != "supervised" and getattr(select, name) is not None]
    facts = ", ".join(f"{name.replace('_', ' ')} {getattr(select, name)}" for name in names)
    rows = {None: "rows", True: "supervised rows", False: "rows that are not supervised"}[select.supervised]
    rows = rows if facts or select.supervised is not None else "all rows"
    before = "the rows before " if select.shift else ""
    role = "" if select.view_role is None else f" ({select.view_role})"
    return f"{before}{rows}{f' ({facts})' * bool(facts)} of view {select.view}{role}"


def trace_samples(prepared: Prepared, stage: str, count: int) -> Iterable[str]:
    """Yields the lines of a dry run on the stage's first samples: the spans of each view as in training, cut to
    the context, and how many views are left out."""
    pipeline = prepared.pipeline(stage)
    for k in islice(range(pipeline.total), count):
        source, epoch, row = pipeline.order.at(k)
        sample = pipeline.sources[source][row]
        yield f"sample {sample.key}  epoch {epoch}"
        dropped: Counter[str] = Counter()
        members = pipeline.views.fitting(
            sample, epoch, dropped, pipeline.other_samples(source, k // pipeline.samples)
        )
        if dropped:
            yield f"  {dropped_text(dropped)}"
        if not members:
            continue
        for view, layout in members:
            of_sample = {
                f"{name}/{key}": value
                for name, each in view.sample_labels.items()
                for key, value in each.items()
            }
            given = {**view.labels, **of_sample}
            labels = "".join(f"  {key}={label_text(value)}" for key, value in given.items())
            role = f" ({view.role})" if view.role else ""
            read = "  read only" if view.supervision == "read" else ""
            yield f"  view {view.name}{role}{labels}{read}  {plural(sum(s.n for s in layout), 'row')}"
            yield f"    {layout_text(layout)}"
            for turn in view.sample.turns:
                yield f"    {turn.role}: {marked(turn)}".replace("\n", "\\n")
        sized = [pipeline.packer.sized(members)]
        batch, _ = pipeline.packer.pack(sized, read_images(sized, pipeline.reader))
        apart = sum(s.n for m in members for s in m.layout)
        yield f"  packed {len(batch)} rows ({apart} unshared)  items " + ", ".join(
            f"{name} {n}" for name, n in batch.count.items()
        )


def label_text(value: Label) -> str:
    """Returns a label as text: a number, or the shape of an array."""
    shape = np.shape(value)
    return f"{list(shape)}" if shape else f"{value}"


def layout_text(layout: Layout) -> str:
    """Returns a layout as text: 'bos[1] | image[36] | response[8]!'. ! marks supervised spans, * learned
    tokens."""
    return " | ".join(_span(span) for span in layout)


def _span(span: Span) -> str:
    if span.kind == "learned":
        return f"{span.token_name}[{span.n}]*"
    edit = (
        f" {type(span.image.edit).__name__}" if span.image is not None and span.image.edit is not None else ""
    )
    name = "image" if span.kind == "image" else span.role
    return f"{name}[{span.n}]{edit}{'!' if span.supervised else ''}"


def component_text(name: str, found: FoundComponent) -> str:
    """Returns a component's kind, origin, docstring and settings as text."""
    cls = found.cls
    kind = next(base.__name__ for base in cls.__mro__[1:] if base is not Component)
    lines = [
        f"{name}  {kind}  from {found.origin}",
        "",
        inspect.cleandoc(cls.__doc__ or "(no description)"),
        "",
        "settings:" if setting_fields(cls) else "no settings",
    ]
    types = setting_types(cls)
    for field in setting_fields(cls):
        default = default_of(field)
        shown = "required" if default is ... else f"default {default!r}"
        lines.append(f"  {field.name}: {types[field.name]}  ({shown})")
    return "\n".join([*lines, *_behaviour(name, cls)])


def _behaviour(name: str, cls: type[Component]) -> list[str]:
    """Returns lines about the tokens, views and needs of a component that has its default settings."""
    try:
        component = build_component(cls, name, {})
    except ValidationError:
        return ["", "what it reads depends on the required settings: see `lmmkit plugins explain RECIPE`"]
    lines = []
    if isinstance(component, TokenStrategy):
        lines.append(f"provides tokens: {', '.join(plugin_calls.provides(component))}")
    if isinstance(component, ViewMaker):
        lines.append(f"makes views: {', '.join(role or name for role in component.roles)}")
    if isinstance(component, Reader):
        needs = plugin_calls.needs(component)
        lines += (
            ["reads, with the default settings:", *(f"  {need_text(need)}" for need in needs)]
            if needs
            else []
        )
    return ["", *lines] if lines else []
