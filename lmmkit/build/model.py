"""Builds an objective, or an encoder alone: shapes on the meta device, memory, drawn and loaded values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from lmmkit import plugin_calls
from lmmkit.api.components import Component, ImageReducer
from lmmkit.api.model_info import Dims
from lmmkit.api.sample import AnyRes
from lmmkit.attention.backends import log_choice
from lmmkit.attention.eager import Eager
from lmmkit.attention.trial import Backend
from lmmkit.build.device import backend, compute_dtype, conditions
from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.model.connectors.kinds import build_connector
from lmmkit.model.decoder import Decoder
from lmmkit.model.image_rows import NewlineRow, ReducedRows, TileRows
from lmmkit.model.init import NoDraws, init
from lmmkit.model.transforms.frozen_bf16 import narrow_matrices
from lmmkit.model.vision import ViT
from lmmkit.model.vlm import LMM
from lmmkit.objective import Objective
from lmmkit.plan import shapes
from lmmkit.plan.pretrained import MODULES, Pretrained
from lmmkit.recipe import Recipe, Vision, VisionScratch, VisionTimm


def encoder(vision: Vision, attention: Backend, where: str) -> nn.Module:
    """Returns the encoder of a recipe; problems from timm are reported at `where`."""
    if isinstance(vision, VisionScratch):
        return ViT(shapes.vision_shape(vision), attention)
    assert isinstance(vision, VisionTimm), "`resolve_pretrained` replaces folders by shapes"
    return shapes.timm_encoder(vision, where, attention)


def shell(recipe: Recipe, components: Mapping[str, Component], dims: Dims, device: torch.device) -> Objective:
    """Returns the objective without values, on the meta device."""
    attention = backend(recipe, device)
    decoder = shapes.decoder_shape(recipe, dims.vocab)
    with torch.device("meta"), NoDraws():
        section, where = recipe.model.vision, recipe.where("model.vision")
        vision = nn.Identity() if section is None else encoder(section, attention, where)
        asked = recipe.model.connector
        connector = (
            build_connector(asked, dims.image.width, decoder.width, dims.image.grid)
            if asked
            else nn.Identity()
        )
        lmm = LMM(vision, connector, Decoder(decoder), attention)
        built = {name: plugin_calls.modules(component, dims) for name, component in components.items()}
        plugins = nn.ModuleDict({name: module for name, module in built.items() if module is not None})
        reducer = components.get(asked.reduce) if asked and asked.reduce else None
        if asked and isinstance(recipe.model.chat.image_fit, AnyRes):
            connector.newline, lmm.image_rows = NewlineRow(decoder.width), TileRows()
        if isinstance(reducer, ImageReducer):
            lmm.image_rows = ReducedRows(reducer, built[reducer.name], dims)
        compute = compute_dtype(recipe, device)
        return Objective(lmm, plugins, compute=compute, dims=dims, seed=recipe.seed)


def modules(objective: Objective) -> dict[str, nn.Module]:
    """Returns the parts of the model by name."""
    return {part: objective.get_submodule(path) for part, path in MODULES.items()}


def build_objective(
    recipe: Recipe, components: Mapping[str, Component], dims: Dims, device: torch.device, *,
    pretrained: Sequence[Pretrained] = (), dtype: torch.dtype = torch.float32, drawn: bool = True,
    narrow: Collection[str] = (), place: torch.device | None = None,
) -> Objective:  # fmt: skip
    """Returns the complete objective for `device`: parts from their folders, the rest drawn from the seed.

    With `drawn` off nothing is drawn from the seed: the caller fills all tensors. `narrow`: parts whose
    matrices are stored in bfloat16; those that come from a folder are never stored in a wider dtype.
    `place`: the device of its tensors, if it is not `device`.
    """
    objective = shell(recipe, components, dims, device)
    _check_pretrained(objective, pretrained)  # before a hostile size allocates memory
    log_choice(objective.lmm.backend, conditions(recipe, device))
    loaded = {part for origin in pretrained for part in origin.parts}
    objective.to(dtype)
    narrow_parts(objective, loaded.intersection(narrow))
    objective.to_empty(device=place or device)
    objective.lmm.decoder.tie()
    valued = set(loaded)
    if isinstance(recipe.model.vision, VisionTimm):
        valued.add("vision")
        _draw_timm(objective.lmm.vision, recipe.model.vision, recipe.seed)
    if drawn:
        init(objective, recipe.seed, but=tuple(MODULES[part] for part in valued))
    for origin in pretrained:
        origin.fill(modules(objective))
    narrow_parts(objective, set(narrow) - loaded)  # rounded only now: values are drawn in `dtype`
    return objective


def narrow_parts(objective: Objective, parts: Collection[str]) -> None:
    """Rounds the matrices of these parts to bfloat16."""
    for part in parts:
        narrow_matrices(modules(objective)[part], autocast=objective.compute != torch.float32)


def frozen_narrow(recipe: Recipe) -> tuple[str, ...]:
    """Returns the parts that `numerics.frozen` stores in bfloat16: those that no stage trains completely.

    A part that a later stage trains keeps the wider dtype from the start: no part has to be converted
    back, and the run needs the memory of its largest stage anyway. timm's modules read each other's
    weights, so they are not changed.
    """
    if recipe.numerics.frozen == "float32":
        return ()
    vision, connector, text = recipe.model.vision, recipe.model.connector, recipe.model.text
    present = {
        "vision": vision if not isinstance(vision, VisionTimm) else None,
        "connector": connector,
        "text": text,
    }
    trained = {
        name
        for stage in recipe.stages.values()
        for name, part in stage.train.parts().items()
        if getattr(part, "lora", None) is None
    }
    return tuple(name for name, part in present.items() if part is not None and name not in trained)


def build_encoder(
    origin: Pretrained,
    vision: VisionScratch | VisionTimm,
    dtype: torch.dtype,
    attention: Backend | None = None,
) -> nn.Module:
    """Returns only an encoder, on the CPU, filled from its folder. Without a backend it computes attention plainly."""
    with torch.device("meta"):
        module = encoder(vision, attention or Eager(), "model.vision")
    origin.check({"vision": module})
    module.to(dtype).to_empty(device="cpu")
    if isinstance(vision, VisionTimm):
        _draw_timm(module, vision, 0)
    origin.fill({"vision": module})
    return module


def _draw_timm(module: nn.Module, vision: VisionTimm, seed: int) -> None:
    """Sets timm's initial values, a function of the seed, and timm's buffers, which no file contains."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        drawn = shapes.timm_encoder(vision)
        for own, values in ((module.parameters(), drawn.parameters()), (module.buffers(), drawn.buffers())):
            for tensor, value in zip(own, values, strict=True):
                tensor.copy_(value)


def check_pretrained(
    recipe: Recipe, dims: Dims, pretrained: Sequence[Pretrained], device: torch.device
) -> None:
    """Compares the pretrained folders with the model, by their headers; nothing is allocated.

    Raises `UserError` with each tensor that is missing, extra, or has a wrong shape or dtype.
    """
    if pretrained:
        _check_pretrained(shell(recipe, {}, dims, device), pretrained)


def _check_pretrained(objective: Objective, pretrained: Sequence[Pretrained]) -> None:
    problems: list[Problem] = []
    for origin in pretrained:
        try:
            origin.check(modules(objective))
        except UserError as error:
            problems += error.problems
    raise_all(problems)
