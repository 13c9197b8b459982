"""The dry run of a recipe: all checks of all its plugins, in the stages that use them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from torch import nn

from lmmkit import plugin_calls
from lmmkit.api.components import (
    AuxTask,
    Component,
    ImageReducer,
    Reader,
    Term,
    TokenStrategy,
    TokenWeight,
    ViewMaker,
)
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import selector, selectors, selects_rows, teacher_models_of, teachers_of
from lmmkit.api.sample import Sample, View
from lmmkit.data.micro_batch.laid_out import SizedSample
from lmmkit.data.pipeline import Pipeline
from lmmkit.data.sources.other_samples import SourceSamples
from lmmkit.errors import Problem, UserError
from lmmkit.errors.dry_run import INNER_IMPORT, NO_ITEMS, UNUSED
from lmmkit.plan.dry_run import (
    label_checks,
    module_checks,
    reducer_checks,
    span_checks,
    term_checks,
    token_checks,
    view_checks,
    weight_checks,
)
from lmmkit.plan.dry_run.label_checks import LabelSubject
from lmmkit.plan.dry_run.module_checks import ModuleSubject
from lmmkit.plan.dry_run.reducer_checks import ReducerSubject
from lmmkit.plan.dry_run.span_checks import SpanSubject
from lmmkit.plan.dry_run.subject import first_problems, problem
from lmmkit.plan.dry_run.term_subject import TermSubject, reads_ids
from lmmkit.plan.dry_run.token_checks import TokenSubject
from lmmkit.plan.dry_run.view_checks import ViewSubject
from lmmkit.plan.prepare import Prepared, smallest_step
from lmmkit.plugin_calls.source import inner_imports, unused
from lmmkit.progress import plural

Modules = dict[str, nn.Module | None]  # of the components without a problem so far
SAMPLES = 12  # of the micro-batches
ASKED = 64  # samples whose views are made
WIDE, NARROW = 512, 90  # values of a hidden state
SEARCHED = 512  # samples among which one must concern a plugin


def plugin_problems(prepared: Prepared) -> list[Problem]:
    """Returns the problems of all plugins of a recipe, each once.

    The plugins of a wide model are tried with a narrow one first, which takes a third of a second at any size. What is
    wrong there counts only if it is wrong with the true width too.
    """
    narrow = replace(prepared, dims=narrowed(prepared.dims))
    if narrow.dims == prepared.dims or _problems(narrow):
        return _problems(prepared)
    return []


def narrowed(dims: Dims) -> Dims:
    """Returns the sizes of a model with heads of few values, if `dims` are those of a wide one."""
    return replace(dims, width=dims.heads * -(-NARROW // dims.heads)) if dims.width > WIDE else dims


def _problems(prepared: Prepared) -> list[Problem]:
    """Returns the problems of all components. What would follow from a problem of another one is not looked for."""
    problems: list[Problem] = []
    modules: Modules = {}
    for name, component in prepared.instances.components.items():
        subject = ModuleSubject(component, prepared.dims, prepared.recipe.seed)
        found = [*_of_source(component), *first_problems(module_checks.CHECKS, subject)]
        problems += found
        if not found:
            modules[name] = subject.module
    connector = prepared.recipe.model.connector
    for name, component in prepared.instances.components.items():
        if isinstance(component, ImageReducer) and name in modules:
            alone = connector is not None and connector.kind == "none"
            reducer = ReducerSubject(component, modules[name], prepared.dims, alone)
            problems += first_problems(reducer_checks.CHECKS, reducer)
    checked: set[str] = set()
    for stage in prepared.plans:
        problems += _stage(prepared, stage, modules, checked)
    return list(dict.fromkeys(problems))


def _of_source(component: Component) -> list[Problem]:
    """Returns the problems that the source of a component shows."""
    found = [(UNUSED, each) for each in unused(component)]
    found += [(INNER_IMPORT, each) for each in inner_imports(component)]
    return [
        code.at(f"{component.name}.{each.name}, {each.place}", got=each.got, expected=each.expected)
        for code, each in found
    ]


def _stage(prepared: Prepared, stage: str, modules: Modules, checked: set[str]) -> list[Problem]:
    """Returns the problems of the plugins of a stage. Terms in `checked` were checked in an earlier stage.

    A component with a problem is taken out of `modules`: neither it nor what reads it is tried further.
    """
    plan = prepared.plans[stage]
    problems: list[Problem] = []
    samples = list(islice(stage_samples(prepared.pipeline(stage)), ASKED))

    def tried(name: str, found: Callable[[], list[Problem]]) -> None:
        if name in modules and (new := found()):
            problems.extend(new)
            del modules[name]

    for strategy, _ in plan.strategies:
        views = [View(sample=sample, supervision="train") for sample in samples[:SAMPLES]]
        subject = TokenSubject(strategy, views)
        tried(strategy.name, lambda subject=subject: first_problems(token_checks.CHECKS, subject))
    for loss in plan.labelling:
        subject = LabelSubject(loss, samples, prepared.dims)
        tried(loss.name, lambda subject=subject: first_problems(label_checks.CHECKS, subject))
    for weigher in (each for each in plan.weighers if plugin_calls.has_spans(each)):
        subject = SpanSubject(weigher, samples)
        tried(weigher.name, lambda subject=subject: first_problems(span_checks.CHECKS, subject))
    for task in plan.makers:
        subject = view_subject(prepared, stage, task)
        tried(task.name, lambda subject=subject: first_problems(view_checks.CHECKS, subject))
    faulty = {name for name in prepared.instances.components if name not in modules}
    for term in plan.readers:
        if term.name in checked or _reads(term, faulty, prepared):
            continue
        checked.add(term.name)
        try:
            tried(term.name, lambda term=term: _of_term(prepared, stage, term, modules[term.name]))
        except UserError as error:  # the micro-batches cannot be made
            problems += [] if faulty else error.problems
    return problems


def _reads(term: Reader, names: Collection[str], prepared: Prepared) -> bool:
    """Returns whether a term reads views or tokens of some components."""
    components = prepared.instances.components
    tokens = {t for n in names if isinstance(c := components[n], TokenStrategy) for t in c.provides}
    selected = [each for need in plugin_calls.needs(term) for each in selectors(need)]
    return any(each.view in names or each.token_name in tokens for each in selected)


def _of_term(prepared: Prepared, stage: str, term: Reader, module: nn.Module | None) -> list[Problem]:
    subject = term_subject(prepared, stage, term, module)
    if isinstance(term, AuxTask) and term.text_loss:
        return list(_without_targets(subject, term))
    if isinstance(term, TokenWeight):
        checks = weight_checks.checks_of_weights(term)
    else:
        assert isinstance(term, Term), "readers are terms and weights of rows"
        checks = term_checks.checks_of(term)
    return first_problems((*checks, term_checks.term_on_device), subject)


def stage_samples(pipeline: Pipeline) -> Iterator[Sample]:
    """Yields the samples of a stage that can be read, in the order of training."""
    for k in range(min(pipeline.total, SEARCHED)):
        source, _, record = pipeline.order.at(k)
        try:
            yield pipeline.sources[source][record]
        except UserError:  # a bad record: it is reported, or skipped, elsewhere
            continue


def view_subject(prepared: Prepared, stage: str, task: ViewMaker) -> ViewSubject:
    """Returns a task with the first samples of a stage, or with more if it makes no view of these."""
    pipeline = prepared.pipeline(stage)
    every = stage_samples(pipeline)
    samples, step = list(islice(every, ASKED)), smallest_step(pipeline.samples, pipeline.total)
    needs = [need for need in prepared.plans[stage].needs if selector(need).view == task.name]
    read = tuple(dict.fromkeys((*teachers_of(needs), *teacher_models_of(needs))))
    subject = ViewSubject(task, samples, prepared.recipe.seed, prepared.dims, step, read)
    try:
        enough = bool(subject.all)
    except UserError:  # the checks will report it
        enough = True
    return subject if enough else replace(subject, samples=[*samples, *every])


def term_subject(prepared: Prepared, stage: str, term: Reader, module: nn.Module | None) -> TermSubject:
    """Returns a term with laid-out samples of a stage, with items of the term among them if there are any."""
    laid_out = _laid_out(prepared.pipeline(stage))
    samples = list(islice(laid_out, SAMPLES))
    if not any(_concerns(term, sample) for sample in samples):
        samples = [*islice((s for s in laid_out if _concerns(term, s)), SAMPLES // 2), *samples][:SAMPLES]
    if reads_ids(term):  # whole rows of logits take memory and time, so few of them
        samples = sorted(samples, key=lambda s: (not _concerns(term, s), s.size))[: SAMPLES // 2]
    return TermSubject(
        term, module.eval() if module is not None else None, prepared.packer(stage), samples, prepared.dims
    )


def _laid_out(pipeline: Pipeline) -> Iterator[SizedSample]:
    """Yields the samples of a stage, laid out, without those of which nothing is left."""
    pool = SourceSamples.among(list(islice(stage_samples(pipeline), ASKED)))
    first: UserError | None = None
    found = False
    for sample in stage_samples(pipeline):
        try:
            members = pipeline.views.fitting(sample, 0, Counter(), pool)
        except UserError as error:
            if any(each.code.startswith("plugin/") for each in error.problems):
                raise
            first = first or error
            continue  # a sample that is too long: the estimate of the cost reports it
        if members:
            found = True
            yield pipeline.packer.sized(members)
    if first is not None and not found:
        raise first


def _concerns(term: Reader, sample: SizedSample) -> bool:
    """Returns whether a sample has rows or views that a term reads."""
    if isinstance(term, AuxTask):
        return any(view.name == term.name for view, _ in sample.members)
    needs = plugin_calls.needs(term)
    return not needs or any(
        selects_rows(need, layout)
        for need in needs for view, layout in sample.members if selector(need).takes(view)
    )  # fmt: skip


def _without_targets(subject: TermSubject, task: AuxTask) -> Sequence[Problem]:
    """Returns a problem if a task with a text loss has views, but nothing in them is learned."""
    batch = subject.pack(subject.samples)
    if batch.count[task.name]:
        return ()
    got = f"nothing to learn in the views of {plural(len(subject.samples), 'sample')}"
    return [problem(NO_ITEMS, task.name, "views", task, got)]
