"""A small prepared recipe on drawn scenes, to run components that belong to no recipe."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pluggy
from torch import Tensor, nn

from lmmkit import plugin_calls
from lmmkit.api.components import (
    Component,
    ExtraView,
    ImageReducer,
    LearnedTokens,
    Loss,
    Reader,
    Term,
    TokenStrategy,
    TokenWeight,
)
from lmmkit.api.ctx import Ctx
from lmmkit.api.layout import Insert, InsertAt
from lmmkit.api.model_info import Dims, ImageSpec
from lmmkit.api.needs import (
    HiddenAt,
    HiddenMean,
    Select,
    reads_reference,
    selector,
    selectors,
    teacher_models_of,
    teachers_of,
)
from lmmkit.api.sample import View
from lmmkit.plan.compile_plan import compile_plan
from lmmkit.plan.instances import Instances, build_instances
from lmmkit.plan.prepare import Prepared, prepare
from lmmkit.plan.stage_plan import START
from lmmkit.recipe import Recipe, Weight, read_text
from lmmkit.registry import FoundComponent, Registry, file_components
from lmmkit.scenes import write_scenes

SCENES, HELDOUT = 100, 20
TEACHER = ImageSpec(size=96, grid=(12, 12), width=40)  # of every teacher that a component reads
RECIPE = """
format: 1
seed: 1
model:
  vision:    {width: 48, depth: 1, heads: 3, patch: 4, image_size: 48, feature_layer: -1}
  connector: {kind: linear}
  text:      {width: 48, depth: 32, heads: 4, mlp: 64, context: 512}
  tokenizer: {from: tokenizer.model, kind: sentencepiece}
  chat:      {template: vicuna_v1, image_fit: pad}
data:
  captions:  {kind: llava, records: pretrain.json, images: ., template: plain, image_fit: pad}
  questions: {kind: llava, records: finetune.json, images: ., template: vicuna_v1, image_fit: pad}
stages:
  only:
    data:   {captions: 1.0, questions: 1.0}
    batch:  {samples: 8}
    length: {epochs: 8}
    train:  {vision: {}, connector: {}, text: {}, plugins: {}}
    optim:  {lr: 1.0e-3}
    losses: {next_token: 1.0}
"""


@dataclass(frozen=True, kw_only=True)
class _Reader(Loss):
    """Reads a learned token, so that the strategy which provides it is used."""

    token: str

    @property
    def needs(self) -> tuple[HiddenAt]:
        return (HiddenAt(Select(token_name=self.token)),)

    def value(self, ctx: Ctx) -> Tensor:
        return ctx[self.needs[0]].float().square().sum()


@dataclass(frozen=True, kw_only=True)
class _ViewReader(Loss):
    """Reads views that have no term of their own."""

    view: str

    @property
    def needs(self) -> tuple[HiddenMean]:
        return (HiddenMean(Select(view=self.view)),)

    def value(self, ctx: Ctx) -> Tensor:
        return ctx[self.needs[0]].float().square().sum()


@dataclass(frozen=True, kw_only=True)
class _Provider(TokenStrategy):
    """Provides a learned token for a term that reads one."""

    token: str
    at: InsertAt

    @property
    def provides(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.token,)

    def edit(self, view: View) -> Sequence[Insert]:
        return [Insert(self.at, self.token)]

    def modules(self, dims: Dims) -> nn.Module:
        return LearnedTokens(1, dims.width)


@cache
def _scenes() -> Path:
    """Returns the folder of the drawn scenes, which exists until the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="lmmkit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_scenes(folder / "scenes", count=SCENES, heldout=HELDOUT, seed=1)
    return folder / "scenes"


@cache
def _bare() -> Prepared:
    return prepare(read_text(RECIPE, root=_scenes()))


def file_prepared(path: str, *, trust_files: bool, changes: Sequence[str] = ()) -> Prepared:
    """Returns a prepared recipe with all components of a file. `changes`: their settings, `plugins.NAME.KEY=VALUE`."""
    names, file = file_components(path, trust_files=trust_files), Path(path.partition(":")[0]).resolve()
    lines = "".join(f"  {name}: {{use: '{file}:{name}'}}\n" for name in names)
    recipe = read_text(f"{RECIPE}plugins:\n{lines}", name="drawn scenes", overrides=changes, root=_scenes())
    return prepared_for(build_instances(recipe, trust_files=trust_files).components, recipe)


def prepared_for(components: Mapping[str, Component], recipe: Recipe | None = None) -> Prepared:
    """Returns a prepared recipe with these components. A token that no component provides, or that none
    reads, gets a simple provider or reader. A teacher that they read has twice the size of the model's images."""
    bare = _bare()
    every = {**components, **_others(components.values())}
    terms = [name for name, component in every.items() if isinstance(component, Term)]
    by = tuple(name for name, component in every.items() if isinstance(component, TokenWeight)) or None
    weights = {"next_token": Weight(weight=1.0, by=by), **dict.fromkeys(terms, Weight(weight=1.0))}
    recipe = _with_reducer(recipe or bare.recipe, every)
    tokens = tuple(name for name, c in every.items() if isinstance(c, TokenStrategy) and c.unread)
    needs = [need for c in every.values() if isinstance(c, Reader) for need in plugin_calls.needs(c)]
    reference = START if any(map(reads_reference, needs)) else None
    stages = {
        stage: replace(section, losses=weights, tokens=tokens, reference=reference)
        for stage, section in recipe.stages.items()
    }
    recipe = replace(recipe, plugins={name: {} for name in every}, stages=stages)
    names = (*teachers_of(needs), *teacher_models_of(needs))
    dims = replace(bare.dims, teachers=dict.fromkeys(names, TEACHER))
    found = {name: FoundComponent(type(component), "here") for name, component in every.items()}
    instances = Instances(Registry(pluggy.PluginManager("lmmkit"), found), every, frozenset(every))
    return replace(
        bare,
        recipe=recipe,
        instances=instances,
        dims=dims,
        plans=compile_plan(recipe, instances, dims, bare.tokenizer),
    )


def _with_reducer(recipe: Recipe, components: Mapping[str, Component]) -> Recipe:
    """Returns the recipe with the first image reducer among the components, if there is one."""
    reducers = [name for name, component in components.items() if isinstance(component, ImageReducer)]
    if not reducers or recipe.model.connector is None:
        return recipe
    connector = replace(recipe.model.connector, reduce=reducers[0])
    if getattr(components[reducers[0]], "connects", False):
        connector = replace(connector, kind="none")
    return replace(recipe, model=replace(recipe.model, connector=connector))


def _others(components: Iterable[Component]) -> dict[str, Component]:
    """Returns readers of tokens and views that no term reads, and providers of tokens that none provides."""
    components = list(components)
    needs = [need for c in components if isinstance(c, Reader) for need in plugin_calls.needs(c)]
    read = {name for need in needs for each in selectors(need) if (name := each.token_name) is not None}
    attending = {selector(need).token_name for need in needs}  # others are only attended to
    strategies = [c for c in components if isinstance(c, TokenStrategy)]
    provided = {name for c in strategies for name in plugin_calls.provides(c)}
    unread = {name for c in strategies if not c.unread for name in plugin_calls.provides(c)} - read
    views = {c.name for c in components if isinstance(c, ExtraView)} - {selector(need).view for need in needs}
    return {
        **{f"reads_{name}": _Reader(name=f"reads_{name}", token=name) for name in sorted(unread)},
        **{
            f"provides_{name}": _Provider(
                name=f"provides_{name}", token=name, at="end" if name in attending else "before_response"
            )
            for name in sorted(read - provided)
        },
        **{f"reads_{name}": _ViewReader(name=f"reads_{name}", view=name) for name in sorted(views)},
    }
