"""Builds an objective and prepares it for a stage. Everything happens in this order:

1. `shell`: all modules on the meta device, so that folders can be checked before memory is allocated.
2. `build_objective`: memory, values drawn from the seed, values loaded from folders. Matrices that
   `numerics.frozen` stores in bfloat16 are rounded before loading, or after drawing.
3. `start`: the weights of the model that the stage starts from.
4. `set_stage`: LoRA updates of the last stage are merged; trainable parameters; LoRA of this stage.
5. Sharding over ranks (`training/distributed/fsdp.py`): names and dtypes of parameters are final by now.
6. `set_layers`: compilation around attention, then recomputation around compiled layers.
7. The optimizer, over the parameters that `set_stage` returned.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from lmmkit import plugin_calls
from lmmkit.api.components import Component, ImageReducer
from lmmkit.api.model_info import Dims
from lmmkit.api.sample import AnyRes
from lmmkit.attention.backends import NoBackend, choice_text, choose, log_choice
from lmmkit.attention.eager import Eager
from lmmkit.attention.interface import Heads
from lmmkit.attention.trial import Backend, Conditions
from lmmkit.errors import MachineError, Problem, UserError, raise_all
from lmmkit.errors.plan import ATTENTION, COMPILE
from lmmkit.model.connectors.kinds import CONNECTORS
from lmmkit.model.decoder import Decoder
from lmmkit.model.image_rows import NewlineRow, ReducedRows, TileRows
from lmmkit.model.init import init
from lmmkit.model.teacher import Teacher
from lmmkit.model.transforms import lora
from lmmkit.model.transforms.compiled import set_compiled, why_not
from lmmkit.model.transforms.frozen_bf16 import narrow_matrices
from lmmkit.model.transforms.recompute import set_recomputed
from lmmkit.model.vision import TimmViT, ViT
from lmmkit.model.vlm import LMM
from lmmkit.objective import Objective
from lmmkit.plan import shapes
from lmmkit.plan.prepare import Prepared
from lmmkit.plan.pretrained import MODULES, Pretrained
from lmmkit.plan.stage_plan import START, StagePlan
from lmmkit.plan.teachers import TeacherFolder
from lmmkit.progress import working
from lmmkit.recipe import Recipe, Speed, Stage, TextScratch, Vision, VisionScratch, VisionTimm
from lmmkit.weights import model_folder


def compute_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """Returns bfloat16 on CUDA if the recipe asks for it, else float32."""
    bf16 = recipe.numerics.compute == "bfloat16" and device.type == "cuda"
    return torch.bfloat16 if bf16 else torch.float32


def device_here() -> torch.device:
    """Returns the device of a run on this machine: CUDA if available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def conditions(recipe: Recipe, device: torch.device) -> Conditions:
    """Returns where the recipe's attention is to run. Heads that a folder will tell have a usual size."""
    at = Conditions(device, compute_dtype(recipe, device), deterministic=recipe.speed.deterministic)
    text, vision = recipe.model.text, recipe.model.vision
    if isinstance(text, TextScratch):
        at = at._replace(decoder=Heads(text.heads, text.kv_heads, text.head_size))
    if isinstance(vision, VisionScratch):
        at = at._replace(encoder=Heads(vision.heads, vision.heads, vision.width // vision.heads))
    return at


_asked: set[tuple[str, Conditions]] = set()


def backend(recipe: Recipe, device: torch.device) -> Backend:
    """Returns the attention backend of the recipe. Raises `MachineError` if it cannot run on `device`."""
    asked = recipe.speed.attention, conditions(recipe, device)
    try:
        with working("trying attention backends") if asked not in _asked else nullcontext():
            _asked.add(asked)  # backends remember what was tried
            return choose(*asked)
    except NoBackend as error:
        raise MachineError(ATTENTION.at(recipe.where("speed.attention"), got=str(error))) from error


def attention_text(recipe: Recipe, device: torch.device) -> str:
    """Returns the attention backend of the recipe, and why each better one was not chosen."""
    return choice_text(backend(recipe, device), conditions(recipe, device))


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


def check_teachers(prepared: Prepared) -> None:
    """Compares the folders of the teachers that stages read with their shapes, by their headers.

    Raises `UserError` with each tensor that is missing, extra, or has a wrong shape or dtype.
    """
    problems: list[Problem] = []
    for name in sorted({name for plan in prepared.plans.values() for name in plan.teachers}):
        try:
            prepared.teachers[name].pretrained.check({"vision": teacher_shell(prepared, name)})
        except UserError as error:
            problems += error.problems
    raise_all(problems)


def teacher_shell(prepared: Prepared, name: str) -> nn.Module:
    """Returns a teacher's encoder without values, in the dtypes in which it is kept."""
    folder = prepared.teachers[name]
    with torch.device("meta"):
        module = encoder(folder.vision, Eager(), f"teachers.{name}").requires_grad_(False)
    if _narrow(folder):
        narrow_matrices(module, autocast=False)
    return module


def open_teachers(
    prepared: Prepared, stage: str, device: torch.device, *, cpu: Collection[str] = ()
) -> dict[str, Teacher]:
    """Returns the teachers that a stage reads, by name, with their weights. Those in `cpu` are not yet on `device`."""
    names = prepared.plans[stage].teachers
    return {
        name: _open_teacher(prepared, name, device).to("cpu" if name in cpu else device) for name in names
    }


def _open_teacher(prepared: Prepared, name: str, device: torch.device) -> Teacher:
    folder, recipe = prepared.teachers[name], prepared.recipe
    asked = replace(
        recipe, model=replace(recipe.model, vision=folder.vision),
        numerics=replace(recipe.numerics, compute=folder.section.dtype),
    )  # fmt: skip
    module = build_encoder(folder.pretrained, folder.vision, torch.float32, backend(asked, device))
    compute = compute_dtype(asked, device)
    if _narrow(folder):
        narrow_matrices(module.requires_grad_(False), autocast=compute != torch.float32)
    return Teacher(module, folder.image, compute)


def _narrow(folder: TeacherFolder) -> bool:
    """Returns whether matrices are kept in bfloat16. timm's modules read each other's weights, so theirs are not."""
    return folder.section.dtype == "bfloat16" and isinstance(folder.vision, VisionScratch)


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


def modules(objective: Objective) -> dict[str, nn.Module]:
    """Returns the parts of the model by name."""
    return {part: objective.get_submodule(path) for part, path in MODULES.items()}


def shell(recipe: Recipe, components: Mapping[str, Component], dims: Dims, device: torch.device) -> Objective:
    """Returns the objective without values, on the meta device."""
    attention = backend(recipe, device)
    decoder = shapes.decoder_shape(recipe, dims.vocab)
    with torch.device("meta"):
        section, where = recipe.model.vision, recipe.where("model.vision")
        vision = nn.Identity() if section is None else encoder(section, attention, where)
        asked = recipe.model.connector
        connector = CONNECTORS[asked.kind](dims.image.width, decoder.width) if asked else nn.Identity()
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


def encoder(vision: Vision, attention: Backend, where: str) -> nn.Module:
    """Returns the encoder of a recipe; problems from timm are reported at `where`."""
    if isinstance(vision, VisionScratch):
        return ViT(shapes.vision_shape(vision), attention)
    assert isinstance(vision, VisionTimm), "`resolve_pretrained` replaces folders by shapes"
    return shapes.timm_encoder(vision, where)


def start(objective: Objective, folder: Path) -> tuple[str, ...]:
    """Fills the model from a folder written by lmmkit. Plugin tensors that it lacks keep their initial draw.

    Returns the names of those tensors.
    """
    model_folder.fill(objective, folder, prefixes=("lmm.",))
    return model_folder.fill(objective, folder, prefixes=("plugins.",), strict=False)


def set_stage(
    objective: Objective, plan: StagePlan, stage: Stage, *, seed: int
) -> dict[str, list[nn.Parameter]]:
    """Switches the objective to a stage: sets its terms, and returns the trainable parameters by part.

    The LoRA updates of the previous stage are merged, and those of this stage are attached.
    """
    objective.terms, objective.weighers = plan.terms, plan.weighers
    lora.merge(objective.lmm.decoder)
    objective.zero_grad(set_to_none=True)  # a part that becomes frozen must not keep a gradient
    objective.requires_grad_(False)
    parts = {
        "vision": [objective.lmm.vision],
        "connector": [objective.lmm.connector],
        "text": [objective.lmm.decoder],
        "plugins": [objective.plugins[n] for n in sorted(plan.active) if n in objective.plugins],
    }
    always_frozen = {id(objective.plugins.get_parameter(name)) for name in objective.always_frozen}
    trainable = {}
    asked = stage.train.text.lora if stage.train.text else None
    for name in stage.train.parts():
        if name == "text" and asked is not None:
            trainable[name] = lora.attach(
                objective.lmm.decoder, r=asked.r, alpha=asked.alpha, dropout=asked.dropout,
                targets=asked.targets or lora.TARGETS, seed=seed,
            )  # fmt: skip
            continue
        found = dict.fromkeys(p for module in parts[name] for p in module.parameters())
        trainable[name] = [parameter for parameter in found if id(parameter) not in always_frozen]
        for parameter in trainable[name]:
            parameter.requires_grad_(True)
    return trainable


def parts_of(objective: Objective) -> dict[str, nn.Module]:
    """Returns the modules of which a reference may need its own: the parts of the model, and each plugin's module
    as "plugin_<name>"."""
    return modules(objective) | {f"plugin_{name}": module for name, module in objective.plugins.items()}


def reference_parts(prepared: Prepared, stage: str) -> tuple[str, ...]:
    """Returns the parts of which the reference `start` has copies: those that the stage trains completely.

    A decoder with low-rank updates is its own reference when they are off.
    """
    plan, train = prepared.plans[stage], prepared.recipe.stages[stage].train
    if plan.reference != START:
        return ()
    parts = [part for part in MODULES if part in train.parts()]
    if train.text is not None and train.text.lora is not None:
        parts.remove("text")
    used = [strategy.name for strategy, _ in plan.strategies]
    used += [plan.reducer.name] if plan.reducer is not None else []
    return (*parts, *(f"plugin_{name}" for name in used if train.plugins is not None))


def reference_copies(prepared: Prepared, stage: str, device: torch.device) -> nn.ModuleDict:
    """Returns those copies for `device`, frozen, without values, in the dtypes of `numerics.frozen`."""
    recipe, names = prepared.recipe, reference_parts(prepared, stage)
    objective = shell(recipe, prepared.instances.components, prepared.dims, device)
    found = nn.ModuleDict({name: part for name, part in parts_of(objective).items() if name in names})
    narrow_reference(found, recipe, objective.compute)
    return found.requires_grad_(False)


def narrow_reference(parts: nn.ModuleDict, recipe: Recipe, compute: torch.dtype) -> None:
    """Rounds the matrices of a reference to bfloat16, if `numerics.frozen` says so."""
    for part in parts.values() if recipe.numerics.frozen == "bfloat16" else ():
        if not isinstance(part, TimmViT):
            narrow_matrices(part, autocast=compute != torch.float32)


def set_layers(objective: Objective, speed: Speed) -> None:
    """Compiles layers before and after their attention, if asked for (never timm's), and recomputes the asked
    number of decoder blocks in the backward pass instead of saving their activations."""
    blocks, vision = objective.lmm.decoder.blocks, objective.lmm.vision
    set_compiled([*blocks, *(vision.blocks if isinstance(vision, ViT) else ())], speed.compile)
    set_recomputed(blocks, speed.recomputed(len(blocks)))


def check_compiler(recipe: Recipe, device: torch.device) -> None:
    """Raises `MachineError` if the recipe asks for compiled layers and this machine cannot compile."""
    if not recipe.speed.compile:
        return
    with working("compiling a test kernel"):
        reason = why_not(device)
    if reason:
        got = f"`true`, and `torch.compile` fails: {reason}"
        raise MachineError(COMPILE.at(recipe.where("speed.compile"), got=got))
